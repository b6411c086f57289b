"""The one place that reads a clock; everything else is given one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Time for timers and time for people."""

    def monotonic(self) -> float:
        """Seconds that only ever grow: for every deadline and duration."""
        ...

    def now(self) -> datetime:
        """The wall clock in UTC: for what people read, never for a deadline."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)
