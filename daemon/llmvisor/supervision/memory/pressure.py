"""What is done when memory runs low although every load was admitted, decided. Pure.

Estimates may be wrong, and other programs take memory too. With less free than a soft line, caches are given up first;
if that does not help, idle models are unloaded, those first whose absence costs least. With less than a hard line the
worker that is furthest above its estimate is stopped, before the kernel stops one of its own choice; its requests go on
in the next worker. A worker above its estimate is asked to give up its caches in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmvisor import limits
from llmvisor.supervision.memory.evict import Resident, cheapest


class Worker(msgspec.Struct, frozen=True):
    """A model that has memory, and how much of it."""

    resident: Resident
    rss_bytes: int
    excess_bytes: int
    """Above what was set aside for it; below 0 where it has not got all of that."""


class Relief(msgspec.Struct):
    """What to do now."""

    trim: list[str] = []
    """Workers that give up their caches."""
    trim_answers: bool = False
    """The daemon's own cache of answers goes as well."""
    unload: list[str] = []
    stop: str | None = None


class PressureRule:
    """Told of the memory that is free, again and again."""

    def __init__(self) -> None:
        self._trimmed_at: dict[str, float] = {}
        self._low_since: float | None = None
        self._wait_until = 0.0

    def look(
        self, workers: Sequence[Worker], *, free_bytes: int, soft_bytes: int, hard_bytes: int, now: float
    ) -> Relief:
        """`soft_bytes` and `hard_bytes` are the lines below which too little is free."""
        relief = Relief()
        low = free_bytes < soft_bytes
        for worker in workers:
            if (low or _is_above(worker)) and self._may_trim(worker.resident.key, now):
                relief.trim.append(worker.resident.key)
        if not low:
            self._low_since = None
            return relief
        if self._low_since is None:
            self._low_since = now
            self._wait_until = now + limits.memory_relief_seconds
            relief.trim_answers = True
            return relief
        if now < self._wait_until:
            return relief  # what was done has to show first
        if any(worker.resident.phase == "leaving" for worker in workers):
            return relief
        self._free_more(workers, soft_bytes - free_bytes, relief, hard=free_bytes < hard_bytes)
        if relief.unload or relief.stop:
            self._wait_until = now + limits.memory_relief_seconds
        return relief

    def _may_trim(self, key: str, now: float) -> bool:
        last = self._trimmed_at.get(key)
        if last is not None and now - last < limits.memory_trim_seconds:
            return False
        self._trimmed_at[key] = now
        return True

    def _free_more(self, workers: Sequence[Worker], short_bytes: int, relief: Relief, *, hard: bool) -> None:
        idle = [worker.resident for worker in workers if _may_unload(worker.resident)]
        chosen = cheapest(idle, short_bytes)
        relief.unload = [each.key for each in (idle if chosen is None else chosen)]
        if relief.unload or not hard:
            return
        above = [worker for worker in workers if worker.excess_bytes > 0 and _may_stop(worker)]
        offender = max(above, key=lambda worker: worker.excess_bytes, default=None)
        if offender is None:
            # Nobody takes more than was known: somebody else does. The kernel would take the largest.
            others = [worker for worker in workers if not worker.resident.pinned and worker.rss_bytes]
            offender = max(others, key=lambda worker: worker.rss_bytes, default=None)
        relief.stop = offender.resident.key if offender is not None else None


def _is_above(worker: Worker) -> bool:
    reserved = worker.resident.held_bytes - worker.excess_bytes
    return worker.excess_bytes > max(limits.memory_excess_bytes_min, reserved * limits.memory_excess_ratio)


def _may_stop(worker: Worker) -> bool:
    """A pinned one only where it is far above its estimate: a little is no fault of its own."""
    return not worker.resident.pinned or _is_above(worker)


def _may_unload(resident: Resident) -> bool:
    return resident.phase == "idle" and not resident.pinned
