"""Ids that sort by the time they were made."""

from __future__ import annotations

from collections.abc import Callable

from llmvisor.clock import Clock

_RANDOM_BYTES = 10
_RANDOM_BITS = 8 * _RANDOM_BYTES


class Ids:
    """Makes ids such as `chatcmpl-…`: 48 bits of milliseconds, then 80 random bits that count up within one.

    `random_bytes` gives that many unpredictable bytes (`os.urandom`). No two ids of one instance are equal, and each
    sorts after the one before, also where the wall clock steps back.
    """

    def __init__(self, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._random_bytes = random_bytes
        self._last = 0

    def new(self, prefix: str) -> str:
        """`prefix` and 32 hexadecimal digits."""
        milliseconds = int(self._clock.now().timestamp() * 1000)
        if milliseconds > self._last >> _RANDOM_BITS:
            self._last = milliseconds << _RANDOM_BITS | int.from_bytes(self._random_bytes(_RANDOM_BYTES))
        else:
            self._last += 1
        return f"{prefix}{self._last:032x}"
