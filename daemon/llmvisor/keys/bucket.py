"""How much one key may ask for: a token bucket for its rate, and a count of what runs. Pure.

The bucket is kept as the time at which it will be full again (the generic cell rate algorithm, ITU-T I.371): one
number, exact whatever the intervals are.
"""

from __future__ import annotations

import msgspec

_MINUTE_SECONDS = 60.0


class Rate(msgspec.Struct, frozen=True):
    """What a key's rate leaves at a moment."""

    limit: int
    """Requests in a minute."""
    remaining: int
    """That may come right now."""
    reset_seconds: float
    """Until all of them may come again."""


class Bucket:
    """Requests of one key: as many as `per_minute` at once, and that many in every minute after."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._interval = _MINUTE_SECONDS / per_minute
        self._burst = max(1.0, per_minute)
        self._full_at = 0.0

    def take(self, now: float) -> float:
        """0 where a request may come, which is counted; else the seconds until one may, and nothing is counted."""
        full_at = max(self._full_at, now) + self._interval
        wait = full_at - now - self._burst * self._interval
        if wait > self._interval * 1e-6:
            return wait
        self._full_at = full_at
        return 0.0

    def left(self, now: float) -> Rate:
        behind = max(0.0, self._full_at - now)
        remaining = int(self._burst - behind / self._interval + 1e-6)
        return Rate(round(self.per_minute), max(0, remaining), behind)


class Usage:
    """What one key uses at the moment."""

    def __init__(self) -> None:
        self.running = 0
        self.requests = 0
        """Since the daemon has started."""
        self.last_used: float | None = None
        """Unix seconds."""
        self._bucket: Bucket | None = None

    def bucket(self, per_minute: float | None) -> Bucket | None:
        """The one for this rate; a changed rate begins anew."""
        if per_minute is None:
            self._bucket = None
        elif self._bucket is None or self._bucket.per_minute != per_minute:
            self._bucket = Bucket(per_minute)
        return self._bucket
