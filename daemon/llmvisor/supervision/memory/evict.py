"""Which model's load gets memory, and which loaded model makes room for it, decided. Pure.

A look at who waits and who is loaded goes in, what to do about it comes out; `admission.py` takes the look whenever
something has changed, and carries the decision out. What holds:

- Loads are admitted in the order in which they came. A later one may pass only where the earlier ones lose nothing.
- A model with requests in flight, or pinned, makes no room. Nor does one that has only just been loaded: an idle one
  stays for as long as its reload takes (what keeping it costs is then no more than what dropping it would), but never
  longer than `min_residency_seconds`.
- Of the idle ones those go whose absence costs least: the seconds that a reload takes × how often they are asked for.
- So that nobody starves behind models that are always busy, the one that has been loaded longest yields once both it
  has had `min_residency_seconds` and a load has waited for as long: it finishes what runs and goes, and what waits for
  it has its next turn. If the memory is not needed any more before that, it serves on.
- What is idle goes rather than wait longer than `min_residency_seconds` for one that still finishes what runs.
- Memory that comes back from a model that leaves counts for every load that waits, so two of them share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

import msgspec

from llmvisor import limits


class Load(msgspec.Struct, frozen=True):
    """A model that is to be loaded and has not got its memory yet. Times are on the daemon's monotonic clock."""

    key: str
    needed_bytes: int
    since: float
    deadline: float
    machine_deadline: float | None = None
    """Until when it waits for memory that no model has; None = as for the models'."""
    least_bytes: int | None = None
    """What it has done with before: the rest is a margin, and no reason to refuse it. None = it needs all of it."""
    asked_for: bool = True
    """A request waits for it. What only the configuration wants takes what is free, and nobody makes room for it."""
    returns: bool = False
    """It was loaded until its configuration changed: idle models make room for it, though no request waits."""


class Resident(msgspec.Struct, frozen=True):
    """A model that has memory."""

    key: str
    held_bytes: int
    phase: Literal["loading", "idle", "busy", "draining", "leaving"]
    """`draining` while it finishes what runs and grants no more requests, `leaving` until its process is gone."""
    pinned: bool = False
    ready_at: float = 0.0
    """When it was loaded; counts while it is idle or busy."""
    reload_seconds: float = 1.0
    uses_per_second: float = 0.0
    used_at: float = 0.0

    @property
    def absence_cost(self) -> float:
        """Seconds of reloading that its absence is expected to cost, in each second."""
        return self.reload_seconds * self.uses_per_second


class Room(msgspec.Struct, frozen=True):
    """Memory for models."""

    free_bytes: int
    """That no model holds."""
    limit_bytes: int
    """That there is for all models together."""
    attainable_bytes: int
    """That there would be at the moment with no model loaded at all: other programs may have some of it."""


class Refusal(msgspec.Struct, frozen=True):
    key: str
    never: bool
    """It cannot fit whatever else goes; else it has waited long enough."""


class Decision(msgspec.Struct):
    """What to do now."""

    admit: list[str] = []
    coming: list[str] = []
    """Loads whose memory comes as soon as those that leave have gone, whatever runs elsewhere."""
    evict: list[str] = []
    """Idle ones that unload."""
    yield_: list[str] = []
    """Busy ones that unload once what runs has finished."""
    stay: list[str] = []
    """Draining ones whose memory nobody waits for."""
    refuse: list[Refusal] = []
    wake_at: float | None = None
    """When to look again if nothing changes before."""


def decide(
    loads: Sequence[Load],
    residents: Sequence[Resident],
    room: Room,
    *,
    now: float,
    min_residency_seconds: float,
) -> Decision:
    """`loads` in the order in which they came. What is decided holds for the next look: it is to be carried out."""
    look = _Look(residents, room, now, min_residency_seconds)
    for load in loads:
        look.serve(load)
    return look.decided()


class _Look:
    """One pass over the loads that wait, first come first."""

    def __init__(self, residents: Sequence[Resident], room: Room, now: float, min_residency_seconds: float) -> None:
        self.decision = Decision()
        self._now = now
        self._min_residency = min_residency_seconds
        self._free = room.free_bytes
        self._coming = sum(each.held_bytes for each in residents if each.phase == "leaving")
        self._leaving = self._coming
        """Of that, what waits for nobody's requests."""
        self._claimed = 0
        """What loads that wait already will take of that."""
        pinned_bytes = sum(each.held_bytes for each in residents if each.pinned)
        self._soon = 0
        """Of that, by loads that have been told so, and by those before them."""
        self._most = room.limit_bytes - pinned_bytes
        self._attainable = room.attainable_bytes - pinned_bytes
        self._draining = [each for each in residents if each.phase == "draining"]
        self._stay = [each for each in residents if each.phase in {"idle", "busy"} and not each.pinned]

    def serve(self, load: Load) -> None:
        most = min(self._most, self._attainable)
        if load.least_bytes is not None and load.needed_bytes > most:
            load = msgspec.structs.replace(load, needed_bytes=max(load.least_bytes, most))
        if load.needed_bytes > self._most:
            self.decision.refuse.append(Refusal(load.key, never=True))
        elif load.needed_bytes <= self._free and self._leaves_enough(load.needed_bytes):
            self.decision.admit.append(load.key)
            self._free -= load.needed_bytes
        elif self._now >= (deadline := self._deadline(load)):
            self.decision.refuse.append(Refusal(load.key, never=False))
        else:
            self._wake(deadline)
            if load.needed_bytes <= self._attainable and (load.asked_for or load.returns):
                self._make_room(load)  # else nobody can, or need make room for it, and nobody waits behind it

    def decided(self) -> Decision:
        """Once all loads have been looked at."""
        self.decision.stay = [each.key for each in self._draining]
        return self.decision

    def _leaves_enough(self, needed_bytes: int) -> bool:
        """Whether those who wait already lose nothing by it: neither memory, nor the moment when they get it."""
        total, soon = self._free + self._coming, self._free + self._leaving
        return needed_bytes + self._claimed <= total and needed_bytes + self._soon <= soon

    def _deadline(self, load: Load) -> float:
        hopeless = load.machine_deadline is not None and load.needed_bytes > self._attainable
        return min(load.deadline, load.machine_deadline or load.deadline) if hopeless else load.deadline

    def _make_room(self, load: Load) -> None:
        short_bytes = self._claimed + load.needed_bytes - self._free - self._coming
        if not self._may_go(load.since + self._min_residency):
            short_bytes = self._count_on_draining(short_bytes)
        idle = [each for each in self._stay if each.phase == "idle" and self._may_go(self._idle_until(each))]
        victims = cheapest(idle, short_bytes)
        if victims is None and not load.asked_for:
            return  # the busy ones need not yield, and nobody waits behind it
        self._claimed += load.needed_bytes
        if victims is None:
            short_bytes = self._count_on_draining(short_bytes)
            victims = cheapest(idle, short_bytes)
        if victims is None:
            busy = [each for each in self._stay if each.phase == "busy" and self._may_go(self._busy_until(each, load))]
            victims = self._with_yielding(idle, busy, short_bytes)
        for victim in victims or []:
            self._stay.remove(victim)
            self._coming += victim.held_bytes
            if victim.phase == "idle":
                self._leaving += victim.held_bytes
                self.decision.evict.append(victim.key)
            else:
                self.decision.yield_.append(victim.key)
        if self._claimed <= self._free + self._leaving:
            self.decision.coming.append(load.key)
            self._soon = self._claimed

    def _count_on_draining(self, short_bytes: int) -> int:
        """Wait for what those give back that drain; gives what is still short."""
        while self._draining and short_bytes > 0:
            each = self._draining.pop(0)
            self._coming += each.held_bytes
            short_bytes -= each.held_bytes
        return short_bytes

    def _with_yielding(self, idle: list[Resident], busy: list[Resident], short_bytes: int) -> list[Resident] | None:
        """Busy ones, as few as it takes, and idle ones as far as still needed; None where all is too little."""
        left = short_bytes - sum(each.held_bytes for each in idle)
        yielding: list[Resident] = []
        for each in sorted(busy, key=lambda each: (each.ready_at, each.key)):
            if left <= 0:
                break
            yielding.append(each)
            left -= each.held_bytes
        if left > 0:
            return None
        still = short_bytes - sum(each.held_bytes for each in yielding)
        return yielding + (cheapest(idle, still) or [])

    def _idle_until(self, each: Resident) -> float:
        return each.ready_at + min(self._min_residency, each.reload_seconds)

    def _busy_until(self, each: Resident, load: Load) -> float:
        return max(each.ready_at, load.since) + self._min_residency

    def _may_go(self, at: float) -> bool:
        if self._now >= at:
            return True
        self._wake(at)
        return False

    def _wake(self, at: float) -> None:
        before = self.decision.wake_at
        self.decision.wake_at = at if before is None else min(before, at)


def cheapest(idle: Iterable[Resident], short_bytes: int) -> list[Resident] | None:
    """Those that give so much together and whose absence costs least; None where all are too little.

    Of equal ones the fewest, then those used longest ago.
    """
    if short_bytes <= 0:
        return []
    candidates = sorted(idle, key=lambda each: (each.absence_cost, each.used_at, each.key))
    if sum(each.held_bytes for each in candidates) < short_bytes:
        return None
    if len(candidates) > limits.eviction_candidates_exact_max:
        return _greedily(candidates, short_bytes)
    best: tuple[Resident, ...] = ()
    best_cost = (math.inf, 0, 0.0)
    for count in range(1, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            if sum(each.held_bytes for each in chosen) < short_bytes:
                continue
            cost = (sum(each.absence_cost for each in chosen), count, sum(each.used_at for each in chosen))
            if not best or cost < best_cost:
                best, best_cost = chosen, cost
    return list(best)


def _greedily(candidates: list[Resident], short_bytes: int) -> list[Resident]:
    """Cheapest first, and back with what turns out not to be needed, dearest first."""
    chosen: list[Resident] = []
    got = 0
    for each in candidates:
        chosen.append(each)
        got += each.held_bytes
        if got >= short_bytes:
            break
    for each in reversed(chosen[:]):
        if got - each.held_bytes >= short_bytes:
            chosen.remove(each)
            got -= each.held_bytes
    return chosen
