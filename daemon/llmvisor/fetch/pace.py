"""How fast to fetch, and how long to wait after a failure. Pure: it is told the time and given chance."""

from __future__ import annotations

from collections.abc import Callable

from llmvisor.fetch import limits


class Throttle:
    """Bytes that may pass in a second, over all connections together. 0 is no bound."""

    def __init__(self, bytes_per_second_max: int) -> None:
        self._rate = bytes_per_second_max
        self._free_at = 0.0
        self.chunk_bytes = limits.fetch_chunk_bytes
        """What to take at once: of a slow stream little, so that it flows."""
        if bytes_per_second_max > 0:
            tenth = bytes_per_second_max // 10
            self.chunk_bytes = min(max(tenth, limits.fetch_chunk_bytes_min), limits.fetch_chunk_bytes)

    def seconds_to_wait(self, size_bytes: int, now: float) -> float:
        """How long whoever has just taken so many bytes must take no more."""
        if self._rate <= 0:
            return 0.0
        self._free_at = max(self._free_at, now) + size_bytes / self._rate
        return self._free_at - now


def backoff_seconds(failures: int, random: Callable[[], float]) -> float:
    """The wait after so many failures in a row (1 = the first): full jitter, so that many do not come back at once."""
    bound = min(limits.fetch_backoff_seconds * 2 ** min(failures - 1, 30), limits.fetch_backoff_seconds_max)
    return random() * bound
