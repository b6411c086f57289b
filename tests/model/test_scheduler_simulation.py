"""The scheduler under thousands of random interleavings of requests, crashes, unloads and time.

The machine below plays the runtime actor and the worker. Whatever the order of events: a request ends exactly once, a
worker never runs twice or takes more than it can, and when the events stop, nothing is left waiting.
"""

from __future__ import annotations

import random as random_module

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmvisor.supervision.scheduling.effects import (
    Changed,
    Effect,
    Expire,
    Grant,
    Refuse,
    SchedulerSettings,
    StartWorker,
    StopWorker,
    Suspend,
    Ticket,
)
from llmvisor.supervision.scheduling.poison import Crash, CrashKind
from llmvisor.supervision.scheduling.restart import RestartPolicy
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.scheduling.state import HAS_WORKER, State

SLOTS = 3
KINDS: list[CrashKind] = ["fault", "killed", "outside"]


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        policy = RestartPolicy(
            restarts_max=3,
            window_seconds=60,
            backoff_seconds=(0.1, 10),
            stable_seconds=60,
            random=random_module.Random(1).random,
        )
        settings_ = SchedulerSettings(queue_limit=5, parallel=SLOTS, load_timeout_seconds=20, idle_timeout_seconds=30)
        self.scheduler = Scheduler(settings_, policy)
        self.state = self.scheduler.state
        self.now = 0.0
        self.next_id = 0
        self.worker = False
        self.stopping = False
        self.closing = False
        self.waiting: set[int] = set()
        self.begun: set[int] = set()
        self.running: dict[int, int] = {}
        self.weights: dict[int, int] = {}
        self.outcomes: dict[int, str] = {}

    # -------------------------------------------------------------------------------------------- the actor's part

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartWorker():
                    assert not self.worker, "two workers at once"
                    assert not self.closing or self.begun & self.waiting, "started although the daemon ends"
                    self.worker, self.stopping = True, False
                case StopWorker():
                    assert self.worker, "there is nothing to stop"
                    self.stopping = True
                case Grant(request_id):
                    assert self.state is State.READY
                    assert not self.stopping, "granted to a worker that is leaving"
                    assert request_id in self.waiting
                    self.waiting.remove(request_id)
                    self.begun.add(request_id)
                    self.running[request_id] = min(self.weights[request_id], SLOTS)
                case Suspend(request_id):
                    del self.running[request_id]
                    self.waiting.add(request_id)
                case Refuse(request_id):
                    self.waiting.discard(request_id)
                    self.running.pop(request_id, None)
                    self.end(request_id, "refused")
                case Changed(old, new):
                    assert self.state is old
                    self.state = new
                case Expire():
                    pass  # nobody here has a deadline
        assert self.state is self.scheduler.state

    def end(self, request_id: int, outcome: str) -> None:
        assert request_id not in self.outcomes, f"request {request_id} ended twice"
        self.outcomes[request_id] = outcome

    # -------------------------------------------------------------------------------------------- what may happen

    @rule(weight=st.integers(0, 5), keep_alive=st.sampled_from([None, None, None, 0.0, 5.0, -1.0]))
    def submit(self, weight: int, keep_alive: float | None) -> None:
        self.next_id += 1
        self.waiting.add(self.next_id)
        self.weights[self.next_id] = weight
        self.apply(self.scheduler.submit(Ticket(self.next_id, weight, self.now, keep_alive)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.finish_one(data.draw(st.sampled_from(sorted(self.running))))

    def finish_one(self, request_id: int) -> None:
        del self.running[request_id]
        self.end(request_id, "done")
        self.apply(self.scheduler.ended(request_id, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(request_id)
        self.end(request_id, "withdrawn")
        self.apply(self.scheduler.withdrawn(request_id, self.now))

    @precondition(lambda self: self.worker and self.scheduler.state in {State.LOADING, State.STOPPING})
    @rule()
    def load_finishes(self) -> None:
        if self.scheduler.state is State.LOADING or self.stopping:
            self.apply(self.scheduler.loaded(SLOTS, self.now))

    @precondition(lambda self: self.worker and not self.stopping and self.scheduler.state is State.LOADING)
    @rule()
    def no_room(self) -> None:
        self.worker = False
        self.apply(self.scheduler.denied("no room", self.now))
        assert not self.worker, "tried again for nobody"

    @precondition(lambda self: self.worker)
    @rule(permanent=st.sampled_from([False, False, False, True]), kind=st.sampled_from(KINDS), data=st.data())
    def worker_exits(self, permanent: bool, kind: CrashKind, data: st.DataObject) -> None:
        progressed = frozenset[int]()
        if self.running:
            progressed = data.draw(st.frozensets(st.sampled_from(sorted(self.running))))
        self.worker_ends(Crash(kind, progressed), permanent=permanent)

    def worker_ends(self, crash: Crash, *, permanent: bool = False) -> None:
        self.worker = self.stopping = False
        self.apply(self.scheduler.exited("gone", self.now, permanent=permanent, crash=crash))

    @precondition(lambda self: self.scheduler.on_probation is not None)
    @rule(tokens=st.sampled_from([1, 31, 32, 1000]))
    def suspect_brings(self, tokens: int) -> None:
        suspect = self.scheduler.on_probation
        assert suspect is not None
        assert suspect in self.running
        self.apply(self.scheduler.progressed(suspect, tokens, self.now))

    @precondition(lambda self: self.worker)
    @rule()
    def worker_is_sacrificed(self) -> None:
        self.apply(self.scheduler.sacrificed("out of memory"))

    @precondition(lambda self: self.worker)
    @rule(permanent=st.booleans())
    def worker_breaks(self, permanent: bool) -> None:
        self.apply(self.scheduler.broken("garbage", permanent=permanent))

    @precondition(lambda self: self.worker)
    @rule(kind=st.sampled_from(KINDS))
    def worker_hangs(self, kind: CrashKind) -> None:
        self.apply(self.scheduler.hung("no progress", kind=kind))

    @rule(force=st.booleans())
    def unload(self, force: bool) -> None:
        self.apply(self.scheduler.unload_wanted(self.now, force=force))

    @rule()
    def load(self) -> None:
        self.apply(self.scheduler.load_wanted(self.now))

    @rule()
    def load_is_cancelled(self) -> None:
        self.apply(self.scheduler.load_unwanted(self.now))

    @rule()
    def shutdown(self) -> None:
        self.closing = True
        self.apply(self.scheduler.shutdown(self.now))

    @rule()
    def reset(self) -> None:
        self.apply(self.scheduler.reset(self.now))

    @rule(seconds=st.sampled_from([0.01, 0.5, 3.0, 12.0, 40.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.apply(self.scheduler.wake(self.now))

    # -------------------------------------------------------------------------------------------- what always holds

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.queued == len(self.waiting)
        assert self.scheduler.running == len(self.running)
        assert self.scheduler.slots_busy == sum(self.running.values())

    @invariant()
    def nobody_gets_more_than_there_is(self) -> None:
        assert sum(self.running.values()) <= SLOTS

    @invariant()
    def a_worker_lives_in_the_states_that_have_one(self) -> None:
        assert self.worker == (self.scheduler.state in HAS_WORKER)

    @invariant()
    def who_waits_has_something_to_wait_for(self) -> None:
        """Else it would hang for ever: a worker that works or leaves, or a moment at which something happens."""
        if self.waiting:
            assert self.worker or self.scheduler.next_wake() is not None

    @invariant()
    def a_worker_that_serves_is_never_idle_while_somebody_waits(self) -> None:
        """Suspects run alone, but they run."""
        if self.scheduler.state is State.READY and not self.stopping and self.waiting:
            assert self.running

    @invariant()
    def a_daemon_that_ends_waits_only_for_what_has_begun(self) -> None:
        """Else it would wait for this model until the drain's time is up."""
        if self.closing:
            assert self.waiting <= self.begun
            assert self.waiting or self.running or self.stopping or self.scheduler.state is State.CLOSED

    def teardown(self) -> None:
        """When the events stop and the daemon ends, every request has ended once and no worker is left."""
        self.closing = True
        self.apply(self.scheduler.shutdown(self.now))
        for _ in range(100):
            if self.stopping:
                self.worker_ends(Crash())
            elif self.running:
                self.finish_one(min(self.running))
            elif self.scheduler.state is State.LOADING:
                self.apply(self.scheduler.loaded(SLOTS, self.now))
            elif (wakes_at := self.scheduler.next_wake()) is not None:
                self.now = max(self.now, wakes_at)
                self.apply(self.scheduler.wake(self.now))
        assert self.scheduler.state is State.CLOSED
        assert not self.waiting
        assert not self.worker
        assert set(self.outcomes) == set(range(1, self.next_id + 1))


TestSchedulerSimulation = SchedulerMachine.TestCase
TestSchedulerSimulation.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
