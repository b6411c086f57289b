"""Workers that requests end, on a virtual clock: the scheduler finds out which, and everybody else is served.

The machine below is a worker in which each running request gains a token per tick, and in which a poison request is
the end of it all after so many of its own.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.schedulers import scheduler

from llmvisor import limits
from llmvisor.supervision.scheduling.effects import Effect, Grant, Refuse, StartWorker, StopWorker, Suspend, Ticket
from llmvisor.supervision.scheduling.poison import Crash, CrashKind
from llmvisor.supervision.scheduling.state import State

TICK_SECONDS = 0.02
TICKS_MAX = 60_000


class Asked(msgspec.Struct, frozen=True):
    """A request of so many tokens; poison ends its worker with the one of this number, counted from its grant."""

    tokens: int
    arrives_at_tick: int = 0
    fatal_token: int | None = None


class World:
    """One model under the default budget of restarts."""

    def __init__(self, asked: list[Asked], slots: int, kind: CrashKind = "fault") -> None:
        self.asked = dict(enumerate(asked))
        self.slots = slots
        self.kind: CrashKind = kind
        self.scheduler = scheduler(queue_limit=1000, restarts_max=5, load_timeout_seconds=1000)
        self.now = 0.0
        self.sent = dict.fromkeys(self.asked, 0)
        self.running: dict[int, int] = {}
        """Tokens since the grant."""
        self.ended: dict[int, str] = {}
        self.loading = False
        self.crashes = 0

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartWorker():
                    self.loading = True
                case Grant(one):
                    self.running[one] = 0
                case Suspend(one):
                    del self.running[one]
                case Refuse(one, kind):
                    self.running.pop(one, None)
                    self.ended[one] = kind
                case StopWorker():
                    self.apply(self.scheduler.exited("stopped", self.now))
                case _:
                    pass

    def run(self) -> None:
        for tick in range(TICKS_MAX):
            self.now += TICK_SECONDS
            for one, asked in self.asked.items():
                if asked.arrives_at_tick == tick:
                    self.apply(self.scheduler.submit(Ticket(one, 1, self.now)))
            self.apply(self.scheduler.wake(self.now))
            assert self.scheduler.state is not State.FAILED, "given up for a request's fault"
            if self.loading:
                self.loading = False
                self.apply(self.scheduler.loaded(self.slots, self.now))
            self.step()
            if len(self.ended) == len(self.asked):
                return
        raise AssertionError(f"somebody waits for ever: {self.asked.keys() - self.ended.keys()}")

    def step(self) -> None:
        """A token for everybody, and its consequences."""
        for one in self.running:
            if self.asked[one].fatal_token == self.running[one]:
                self.crash()
                return
            self.running[one] += 1
            self.sent[one] += 1
        for one in [one for one in self.running if self.sent[one] >= self.asked[one].tokens]:
            del self.running[one]
            self.ended[one] = "done"
            self.apply(self.scheduler.ended(one, self.now))
        suspect = self.scheduler.on_probation
        if suspect is not None:
            self.apply(self.scheduler.progressed(suspect, self.running[suspect], self.now))

    def crash(self) -> None:
        self.crashes += 1
        progressed = frozenset(one for one, tokens in self.running.items() if tokens)
        self.apply(self.scheduler.exited("gone", self.now, crash=Crash(self.kind, progressed)))


POISON_MAX = limits.poison_in_a_row_max
"""More of them in a row than that, and the budget of restarts, is the model's own fault."""
FATAL = st.integers(0, limits.poison_cleared_tokens - 1)
HARMLESS = st.builds(Asked, st.integers(1, 200), st.integers(0, 300))
POISON = st.builds(Asked, st.just(1000), st.integers(0, 300), FATAL)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(HARMLESS, HARMLESS, POISON), min_size=1, max_size=16), st.integers(1, 6))
def test_poison_is_refused_and_everybody_else_is_served(asked: list[Asked], slots: int) -> None:
    """Whenever they come: the model is never given up, each of them costs a bounded number of workers, and whoever is
    harmless is served whole."""
    assume(sum(one.fatal_token is not None for one in asked) <= POISON_MAX)
    world = World(asked, slots)
    world.run()
    expected = {one: "done" if asked.fatal_token is None else "poison_request" for one, asked in world.asked.items()}
    assert world.ended == expected
    assert world.crashes <= 4 * sum(asked.fatal_token is not None for asked in asked)


def test_model_in_which_every_request_is_the_end_is_given_up() -> None:
    """One request after the other is refused as the cause, and nobody is served: it is the model, not they."""
    world = World([Asked(10, number * 500, fatal_token=0) for number in range(20)], slots=4)
    with pytest.raises(AssertionError, match="given up"):
        world.run()
    assert limits.poison_in_a_row_max <= list(world.ended.values()).count("poison_request") < 15


def test_worker_that_a_request_fills_until_the_kernel_kills_it_is_not_given_up() -> None:
    """A kill from outside that comes before the request's first token, each time: it is alone to blame; the others, who
    got on in between, are not."""
    world = World([Asked(3000), Asked(1000, 50, fatal_token=0)], slots=4, kind="killed")
    world.run()
    assert world.ended == {0: "done", 1: "poison_request"}


def test_request_that_ends_its_workers_late_is_found_as_well() -> None:
    """It brings much each time, so it is cleared at first; each time it has to bring more. The long text beside it,
    which is inside at every crash too, is whole in the end."""
    world = World([Asked(10**9, 0, fatal_token=400), Asked(9000), Asked(50, 4000)], slots=4)
    world.run()
    assert world.ended == {0: "poison_request", 1: "done", 2: "done"}
    assert world.crashes <= 8


def test_request_that_ends_its_workers_very_late_ends_with_the_budget() -> None:
    """It was inside at every crash of the window, and goes instead of the model; what came in between is served."""
    world = World([Asked(10**9, 0, fatal_token=2999), Asked(50, 10), Asked(50, 50_000)], slots=4, kind="fault")
    world.scheduler.settings = msgspec.structs.replace(world.scheduler.settings, load_timeout_seconds=10_000)
    world.run()
    assert world.ended == {0: "poison_request", 1: "done", 2: "done"}
