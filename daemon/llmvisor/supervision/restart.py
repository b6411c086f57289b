"""When a crashed worker is started again, and when no more. Pure.

Exponential backoff with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015), and a
budget of crashes within a window as Erlang/OTP's supervisors have it. A worker that served for a stable time makes one
earlier crash forgiven, as Chromium does for its GPU process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class RestartPolicy:
    """The crashes of one model, and what they allow.

    More than `restarts_max` crashes within `window_seconds` spend the budget. `random` gives numbers in [0, 1).
    """

    def __init__(
        self,
        *,
        restarts_max: int,
        window_seconds: float,
        backoff_seconds: tuple[float, float],
        stable_seconds: float,
        random: Callable[[], float],
    ) -> None:
        self._restarts_max = restarts_max
        self._window_seconds = window_seconds
        self._backoff_seconds = backoff_seconds
        self._stable_seconds = stable_seconds
        self._random = random
        self._crashes: deque[float] = deque()
        self._in_a_row = 0

    def crashed(self, now: float, *, served_seconds: float) -> float | None:
        """Count a crash of a worker that had served for so long.

        Gives the seconds to wait before the next start, or None when the budget is spent.
        """
        if served_seconds >= self._stable_seconds:
            self._in_a_row = 0
            if self._crashes:
                self._crashes.popleft()
        self._crashes.append(now)
        while self._crashes and now - self._crashes[0] > self._window_seconds:
            self._crashes.popleft()
        if len(self._crashes) > self._restarts_max:
            return None
        first, longest = self._backoff_seconds
        ceiling = min(longest, first * 2.0 ** min(self._in_a_row, 32))
        self._in_a_row += 1
        return ceiling * self._random()

    def reset(self) -> None:
        """Forget every crash."""
        self._crashes.clear()
        self._in_a_row = 0
