"""A timer that is set anew again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmvisor.clock import Clock


class Alarm:
    """Calls `ring` at the time it was last set to."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.due_at: float | None = None
        """The monotonic time that it is set to; one that is over means that nobody was woken."""

    def set(self, *times: float | None) -> None:
        """Ring at the first of these monotonic times; at none, if all are None."""
        first = self.due_at = min((time for time in times if time is not None), default=None)
        if self._timer is not None:
            if first is not None and self._timer_at <= first:
                return  # mostly it is set later and later: the timer that there is will see
            self._timer.cancel()
            self._timer = None
        if first is not None:
            self._start(first)

    def _start(self, at: float) -> None:
        self._timer_at = at
        delay = max(0.0, at - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self.due_at is not None and self.due_at > self._timer_at:
            self._start(self.due_at)
        else:
            self._ring()
