"""When a crashed worker is started again, and when no more. Pure.

Exponential backoff with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015), and a
budget of crashes within a window as Erlang/OTP's supervisors have it. A worker that served for a stable time makes one
earlier crash forgiven, as Chromium does for its GPU process. The first crash in a row of a worker that had served is no
reason to wait: whoever is inside waits for the next worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec


class RestartLimits(msgspec.Struct, frozen=True):
    """How often, and how soon."""

    restarts_max: int
    window_seconds: float
    backoff_seconds: tuple[float, float]
    """The first wait, and the longest."""


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
        self._crashes: deque[tuple[float, frozenset[int]]] = deque()
        self._in_a_row = 0

    def crashed(
        self, now: float, *, served_seconds: float, inside: frozenset[int] = frozenset(), excused: bool = False
    ) -> float | None:
        """Count a crash of a worker that had served for so long, with these requests inside.

        Gives the seconds to wait before the next start, or None when the budget is spent: not where it is `excused`.
        """
        if served_seconds >= self._stable_seconds:
            self._in_a_row = 0
            if self._crashes:
                self._crashes.popleft()
        self._crashes.append((now, inside))
        while self._crashes and now - self._crashes[0][0] > self._window_seconds:
            self._crashes.popleft()
        if len(self._crashes) > self._restarts_max and not excused:
            return None
        first, longest = self._backoff_seconds
        ceiling = min(longest, first * 2.0 ** min(self._in_a_row, 32))
        at_once = self._in_a_row == 0 and served_seconds > 0
        self._in_a_row += 1
        return 0.0 if at_once else ceiling * self._random()

    def inside_all(self) -> frozenset[int]:
        """The requests that were inside at every crash of the window; none where there was only one."""
        if len(self._crashes) < 2:
            return frozenset()
        common = self._crashes[0][1]
        for _, inside in self._crashes:
            common &= inside
        return common

    def forgive(self, requests: frozenset[int]) -> None:
        """The crashes of these requests are no fault of the model's: they do not count."""
        self._crashes = deque(crash for crash in self._crashes if crash[1].isdisjoint(requests))
        self._in_a_row = 0

    def configure(self, allowed: RestartLimits) -> None:
        """Other limits hold from now on, for the crashes that there were as well."""
        self._restarts_max = allowed.restarts_max
        self._window_seconds = allowed.window_seconds
        self._backoff_seconds = allowed.backoff_seconds

    def reset(self) -> None:
        """Forget every crash."""
        self._crashes.clear()
        self._in_a_row = 0
