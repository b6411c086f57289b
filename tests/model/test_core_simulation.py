"""One model's scheduler, its queue, its rule of poison and its budget of restarts, on a virtual clock, from seeds.

The world below is clients and workers: requests of all kinds come, leave and have deadlines, the worker gives each of
them numbered tokens, and it is killed, fails, hangs and is unloaded. Whatever the order: a request ends once, its
tokens have no gap and no repeat, nobody waits for ever, and when nothing goes wrong any more all are served.

The same seed gives the same run: `LLMVISOR_SIMULATION_SEEDS=1000-2000` runs others than those of every day.
"""

from __future__ import annotations

import os
import random

import pytest
from tests.support.schedulers import scheduler

from llmvisor.supervision.scheduling.effects import (
    Effect,
    Expire,
    Grant,
    Refuse,
    StartWorker,
    StopWorker,
    Suspend,
    Ticket,
)
from llmvisor.supervision.scheduling.poison import Crash, CrashKind
from llmvisor.supervision.scheduling.state import HAS_WORKER, State

FIRST, LAST = map(int, os.environ.get("LLMVISOR_SIMULATION_SEEDS", "0-2000").split("-"))
SEEDS_EACH = 250
TICK_SECONDS = 0.05
TROUBLE_TICKS = 400
QUIET_TICKS_MAX = 40_000
SLOTS = 3
KINDS: tuple[CrashKind, ...] = ("outside", "outside", "killed", "fault")


class Asked:
    """A request, and how far it has come."""

    def __init__(self, ticket: Ticket, tokens: int) -> None:
        self.ticket = ticket
        self.tokens = tokens
        self.sent: list[int] = []
        self.brought = 0
        """Since it was last granted."""
        self.outcome: str | None = None


class World:
    """What a seed leads to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = scheduler(queue_limit=40, restarts_max=1000, load_timeout_seconds=60, idle_timeout_seconds=2)
        self.now = 0.0
        self.asked: dict[int, Asked] = {}
        self.running: dict[int, Asked] = {}
        self.worker = False
        self.stop: str | None = None
        self.hangs = False
        self.loads_at: float | None = None
        self.crashes = 0
        self.trouble = self.random.uniform(0, 0.15)
        """How likely something goes wrong in a tick."""

    # ------------------------------------------------------------------------------------------ the actor's part

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartWorker():
                    assert not self.worker, "two workers at once"
                    self.worker, self.stop, self.hangs = True, None, False
                    self.loads_at = self.now + self.random.uniform(0, 1)
                case StopWorker(rung):
                    assert self.worker, "there is nothing to stop"
                    self.stop = rung
                case Grant(one):
                    asked = self.asked[one]
                    assert one not in self.running, f"{one} runs twice"
                    assert asked.outcome is None, f"{one} runs after its end"
                    assert self.stop is None, "granted to a worker that is leaving"
                    asked.brought = 0
                    self.running[one] = asked
                case Suspend(one):
                    assert self.running.pop(one).outcome is None
                case Refuse(one, kind):
                    self.running.pop(one, None)
                    self.end(one, kind)
                case Expire(one):
                    self.leave(one, "timeout")
                case _:
                    pass
        assert sum(min(SLOTS, asked.ticket.weight) for asked in self.running.values()) <= SLOTS

    def end(self, one: int, outcome: str) -> None:
        assert self.asked[one].outcome is None, f"{one} ended twice: {self.asked[one].outcome}, {outcome}"
        self.asked[one].outcome = outcome

    # --------------------------------------------------------------------------------------------- what happens

    def tick(self, *, trouble: bool) -> None:
        self.now += TICK_SECONDS
        if trouble:
            if self.random.random() < 0.25 and len(self.asked) < 80:
                self.arrive()
            if self.random.random() < self.trouble:
                self.random.choice([self.crash, self.crash, self.hang, self.unload, self.somebody_leaves, self.reset])()
        self.apply(self.scheduler.wake(self.now))
        self.work()

    def arrive(self) -> None:
        weight, client = self.random.choice([0, 1, 1, 1, 2, 5]), self.random.choice("abc")
        priority = self.random.choice(["low", "normal", "normal", "high"])
        deadline = self.now + self.random.uniform(0, 30) if self.random.random() < 0.1 else None
        resume = self.random.random() > 0.1
        number = len(self.asked)
        ticket = Ticket(number, weight, self.now, None, client, priority, deadline, resume)  # pyright: ignore[reportArgumentType]
        self.asked[number] = Asked(ticket, self.random.randint(1, 60))
        self.apply(self.scheduler.submit(ticket))

    def crash(self, kind: CrashKind | None = None) -> None:
        """The worker ends: killed from outside, for want of memory perhaps, or by itself."""
        if not self.worker:
            return
        self.crashes += 1
        self.worker, self.loads_at = False, None
        got_on = frozenset(one for one, asked in self.running.items() if asked.brought)
        crash = Crash(kind or self.random.choice(KINDS), got_on)
        self.apply(self.scheduler.exited("gone", self.now, crash=crash))

    def hang(self) -> None:
        if self.worker and self.stop is None and self.loads_at is None:
            self.hangs = True
            self.apply(self.scheduler.hung("no progress"))

    def unload(self) -> None:
        self.apply(self.scheduler.unload_wanted(self.now))

    def reset(self) -> None:
        self.apply(self.scheduler.reset(self.now))

    def somebody_leaves(self) -> None:
        if here := [one for one, asked in self.asked.items() if asked.outcome is None]:
            self.leave(self.random.choice(here), "left")

    def leave(self, one: int, outcome: str) -> None:
        """A client goes; what runs of it is let go of at once."""
        self.end(one, outcome)
        if self.running.pop(one, None) is not None:
            self.apply(self.scheduler.ended(one, self.now))
        else:
            self.apply(self.scheduler.withdrawn(one, self.now))

    def work(self) -> None:
        """What the worker does in a tick."""
        if self.worker and self.stop is not None and (self.stop != "close" or not self.running):
            self.worker, self.loads_at = False, None
            got_on = frozenset(one for one, asked in self.running.items() if asked.brought)
            self.apply(self.scheduler.exited("as asked", self.now, crash=Crash("fault", got_on)))
        elif self.worker and self.loads_at is not None:
            if self.now >= self.loads_at:
                self.loads_at = None
                self.apply(self.scheduler.loaded(SLOTS, self.now))
        elif self.worker and not self.hangs:
            for one, asked in list(self.running.items()):
                self.generate(one, asked)

    def generate(self, one: int, asked: Asked) -> None:
        # As the runtime does: a worker that has what was sent goes on after it.
        asked.sent.append(len(asked.sent))
        asked.brought += 1
        self.apply(self.scheduler.progressed(one, asked.brought, self.now))
        if len(asked.sent) == asked.tokens:
            del self.running[one]
            self.end(one, "done")
            self.apply(self.scheduler.ended(one, self.now))

    # ----------------------------------------------------------------------------------------------- the whole run

    def run(self) -> None:
        for _ in range(TROUBLE_TICKS):
            self.tick(trouble=True)
            self.check()
        for _ in range(QUIET_TICKS_MAX):
            if all(asked.outcome is not None for asked in self.asked.values()):
                break
            self.tick(trouble=False)
            self.check()
        waiting = [one for one, asked in self.asked.items() if asked.outcome is None]
        assert not waiting, f"they wait for ever: {waiting} ({self.scheduler.state})"
        for one, asked in self.asked.items():
            if asked.outcome == "done":
                assert asked.sent == list(range(asked.tokens)), f"{one}: a gap or a repeat"
        self.close()

    def check(self) -> None:
        assert self.worker == (self.scheduler.state in HAS_WORKER)
        assert self.scheduler.running == len(self.running)
        if self.scheduler.queued and not self.worker:
            assert self.scheduler.next_wake() is not None, "they wait, and nothing will happen"

    def close(self) -> None:
        self.apply(self.scheduler.shutdown(self.now))
        if self.worker:
            self.worker = False
            self.apply(self.scheduler.exited("closed", self.now))
        assert self.scheduler.state is State.CLOSED


@pytest.mark.parametrize("first", range(FIRST, LAST, SEEDS_EACH))
def test_every_request_ends_once_and_completely(first: int) -> None:
    """Thousands of seeds; what fails names its own."""
    outcomes: set[str | None] = set()
    crashes = 0
    for seed in range(first, min(first + SEEDS_EACH, LAST)):
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(
                f"seed {seed}: LLMVISOR_SIMULATION_SEEDS={seed}-{seed + 1} repeats it: {error}"
            ) from error
        outcomes |= {asked.outcome for asked in world.asked.values()}
        crashes += world.crashes
    if LAST - FIRST >= SEEDS_EACH:
        assert crashes > SEEDS_EACH
        assert {"done", "left", "timeout", "runtime_crashed"} <= outcomes


@pytest.mark.parametrize("first", range(FIRST, (FIRST + LAST) // 2, SEEDS_EACH))
def test_kills_from_outside_cost_nobody_an_answer(first: int) -> None:
    """Where workers are only killed, every request that goes on after that gets all of its tokens."""
    for seed in range(first, min(first + SEEDS_EACH, LAST)):
        world = World(seed)
        for _ in range(20):
            world.arrive()
            world.tick(trouble=False)
            if world.random.random() < 0.4:
                world.crash("outside")
        while any(asked.outcome is None for asked in world.asked.values()):
            world.tick(trouble=False)
            world.check()
        for one, asked in world.asked.items():
            allowed = (
                {"done"}
                if asked.ticket.resume and asked.ticket.deadline is None
                else {"done", "timeout", "runtime_crashed"}
            )
            assert asked.outcome in allowed, f"seed {seed}: request {one} ended {asked.outcome}"
