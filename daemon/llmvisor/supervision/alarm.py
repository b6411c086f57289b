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
        self.due_at: float | None = None
        """The monotonic time that it is set to; one that is over means that nobody was woken."""

    def set(self, *times: float | None) -> None:
        """Ring at the first of these monotonic times; at none, if all are None."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first = self.due_at = min((time for time in times if time is not None), default=None)
        if first is not None:
            delay = max(0.0, first - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)
