"""Which of many times comes first, by id. Pure.

Ids that are dropped stay in the heap until they come up, so every operation costs the logarithm of what is there.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

_DEAD_MIN = 64
"""So many dropped ids may be in the heap before it is made anew."""


class Earliest:
    """Times by id, the first of them at hand."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._times)

    def add(self, id: int, time: float) -> None:
        """An id that is there already gets this time instead."""
        self._times[id] = time
        heappush(self._heap, (time, id))

    def drop(self, id: int) -> None:
        """Without effect for an id that is not there."""
        if self._times.pop(id, None) is not None and len(self._heap) > 2 * len(self._times) + _DEAD_MIN:
            self._heap = [(time, id) for id, time in self._times.items()]
            heapify(self._heap)

    def first(self) -> tuple[float, int] | None:
        """The earliest time and its id."""
        while self._heap:
            time, id = self._heap[0]
            if self._times.get(id) == time:
                return time, id
            heappop(self._heap)
        return None

    def first_time(self) -> float | None:
        """The earliest time."""
        return None if not self._times or (first := self.first()) is None else first[0]

    def due(self, now: float) -> list[int]:
        """Take out every id whose time has come, earliest first."""
        ids: list[int] = []
        while (first := self.first()) is not None and first[0] <= now:
            self.drop(first[1])
            ids.append(first[1])
        return ids

    def clear(self) -> None:
        self._times.clear()
        self._heap.clear()
