"""Which request ends the workers that it runs in. Pure.

A worker's crash counts against the requests inside it. The second that counts in full makes a request that was alone
poison: it is refused, and its like for a while. Where several were inside at a second one, each of them is a suspect
and runs alone until it crashes alone, ends, or has brought so much that it is cleared; the next one then runs beside
it. Where that crashes, the one that is not cleared is the first to run all alone. So the faults that a poison request
can cause are bounded, by four.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal

import msgspec

CrashKind = Literal["fault", "killed", "outside"]
"""`fault`: the process itself failed (a fault signal, an exit, a hang, a broken protocol). `killed`: for want of
memory, or perhaps for that. `outside`: by somebody else, it seems, which says little of the requests inside."""

_POINTS: Mapping[CrashKind, int] = {"fault": 2, "killed": 2, "outside": 1}
_POINTS_MAX = 4
"""Two workers that failed end a request, and four in a row that were ended before it brought anything."""
_STRICTER = 4
"""Who is suspected again has to bring so many times more before it is cleared again."""


class Crash(msgspec.Struct, frozen=True):
    """How a worker ended, as far as that says something about its requests."""

    kind: CrashKind = "fault"
    progressed: frozenset[int] = frozenset()
    """Requests that had brought something new since this worker got them."""


class PoisonRule:
    """The counts against the requests of one model that have not ended."""

    def __init__(self, *, cleared_tokens: int) -> None:
        self._cleared_tokens = cleared_tokens
        self._faults: dict[int, int] = {}
        self._kills: dict[int, int] = {}
        """In a row, without anything new between them."""
        self._suspects: set[int] = set()
        self._cleared: dict[int, int] = {}
        """How often."""

    def count(self, request_id: int) -> int:
        """What counts against a request, in points."""
        return self._faults.get(request_id, 0) + self._kills.get(request_id, 0)

    @property
    def suspects(self) -> AbstractSet[int]:
        """Requests that run alone, if at all."""
        return self._suspects

    def crashed(self, inside: Collection[int], crash: Crash) -> frozenset[int]:
        """A worker has ended with these requests inside. Gives those that are poison."""
        counted = [request_id for request_id in inside if self._count(request_id, crash)]
        second = frozenset(one for one in counted if self.count(one) >= _POINTS_MAX)
        if second and len(inside) == 1:
            self.forget(*second)
            return second
        self._suspects |= second
        return frozenset()

    def next_suspect(self, waiting: Collection[int], running: Collection[int]) -> int | None:
        """The suspect that may run now: the most suspicious of those that wait, while no other one runs.

        Of several it is the newest: what has run for long did no harm before.
        """
        if not self._suspects.isdisjoint(running):
            return None
        found = [request_id for request_id in waiting if request_id in self._suspects]
        return max(found, key=lambda one: (self.count(one), one), default=None)

    def progressed(self, request_id: int, tokens: int) -> bool:
        """A suspect has brought so many tokens since it runs alone. Whether that clears it."""
        times = self._cleared.get(request_id, 0)
        if request_id not in self._suspects or tokens < self._cleared_tokens * _STRICTER**times:
            return False
        self.clear(request_id)
        return True

    def clear(self, request_id: int) -> None:
        """A request is under suspicion no more; the next time it has to bring more for that."""
        times = self._cleared.get(request_id, 0)
        self.forget(request_id)
        self._cleared[request_id] = times + 1

    def forget(self, *request_ids: int) -> None:
        """These have ended."""
        for request_id in request_ids:
            self._faults.pop(request_id, None)
            self._kills.pop(request_id, None)
            self._suspects.discard(request_id)
            self._cleared.pop(request_id, None)

    def _count(self, request_id: int, crash: Crash) -> bool:
        """Count a crash against a request that was inside. False where it is not counted."""
        points = _POINTS[crash.kind]
        if crash.kind == "fault":
            self._faults[request_id] = self._faults.get(request_id, 0) + points
        elif request_id in crash.progressed:
            self._kills.pop(request_id, None)
            return False
        else:
            self._kills[request_id] = self._kills.get(request_id, 0) + points
            # One that somebody ends proves nothing, also not of a suspect.
            return crash.kind == "killed" or self._kills[request_id] >= _POINTS_MAX
        return True


class Quarantine:
    """Poison requests by their digests, each for so long; of more than `entries_max` the oldest are let go."""

    def __init__(self, *, seconds: float, entries_max: int) -> None:
        self._seconds = seconds
        self._entries_max = entries_max
        self._until: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, digest: str, now: float) -> None:
        self._until.pop(digest, None)
        self._until[digest] = now + self._seconds
        while len(self._until) > self._entries_max:
            del self._until[next(iter(self._until))]

    def seconds_left(self, digest: str, now: float) -> float | None:
        """For how much longer a request is refused; None for one that is not."""
        until = self._until.get(digest)
        if until is not None and now >= until:
            del self._until[digest]
            return None
        return None if until is None else until - now

    def clear(self) -> None:
        self._until.clear()

    def all(self) -> dict[str, float]:
        """Until when each is refused, oldest first."""
        return dict(self._until)

    def restore(self, until: Mapping[str, float]) -> None:
        """Go on with those of an earlier run."""
        self._until = dict(until)
