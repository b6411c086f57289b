"""Requests that have come but that the engine has not taken yet.

Between the command pipe and the engine lie a tokenizer and a queue. What arrives for a request in that time must
neither get lost nor reach a backend that does not know the request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from llmvisor_runtimes.protocol import Delta, Done, Embed, Embeddings, Generate, Report, Score, Step


class _Waiting:
    __slots__ = ("cancelled", "entering", "paused", "request")

    def __init__(self, request: Generate | Embed | Score) -> None:
        self.request = request
        self.entering = False
        self.cancelled = False
        self.paused = False


class WaitingRequests:
    """Which requests wait, and what has been asked of each since. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}

    def add(self, request: Generate | Embed | Score) -> bool:
        """Note a request that has come; False where its id is waiting already."""
        with self._lock:
            return self._waiting.setdefault(request.id, (entry := _Waiting(request))) is entry

    def __contains__(self, id: int) -> bool:
        return id in self._waiting

    def remove(self, id: int) -> bool:
        """Forget a request that will not reach the engine; False where it was cancelled meanwhile."""
        with self._lock:
            return self._waiting.pop(id, None) is not None

    def enter(
        self, id: int, take: Callable[[], None], cancel: Callable[[int], None], pause: Callable[[int], None]
    ) -> bool:
        """Hand a request to the engine with `take`, then what came for it while `take` ran.

        False where the request was cancelled before, and `take` has not run. Whatever `take` raises goes through.
        """
        with self._lock:
            entry = self._waiting.get(id)
            if entry is None:
                return False
            entry.entering = True
        try:
            take()
        except BaseException:
            self.remove(id)
            raise
        with self._lock:
            del self._waiting[id]
            # Under the lock: a `Resume` of this moment comes after the `pause` here, not before it.
            if entry.paused:
                pause(id)
            if entry.cancelled:
                cancel(id)
        return True

    def cancel(self, id: int) -> tuple[bool, Generate | Embed | Score | None]:
        """Whether the request waits here, and the request itself where it is now ended and has to be answered."""
        with self._lock:
            entry = self._waiting.get(id)
            if entry is None:
                return False, None
            if entry.entering:
                entry.cancelled = True
                return True, None
            del self._waiting[id]
            return True, entry.request

    def pause(self, id: int, *, paused: bool) -> bool:
        """Whether the request waits here, so that the engine will learn of it as it takes the request."""
        with self._lock:
            entry = self._waiting.get(id)
            if entry is None:
                return False
            entry.paused = paused
            return True


def cancelled_report(request: Generate | Embed | Score) -> Report:
    """The answer to a request that was cancelled before the engine saw it."""
    if isinstance(request, Embed | Score):
        return Embeddings(request.id, 0, [], last=True)
    deltas = [Delta(request.id, index, "", [], "cancelled") for index in range(request.n)]
    return Step(deltas, [Done(request.id, 0, 0, 0, 0.0, 0.0)])
