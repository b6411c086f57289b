"""How prompts are read, whichever engine does it: what two have in common, and how much of one at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCK = 128
"""Tokens compared at once; list comparison is C, a loop is not."""


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists have in common from the start."""
    stop = min(len(first), len(second))
    place = 0
    while place < stop and first[place : place + _BLOCK] == second[place : place + _BLOCK]:
        place += _BLOCK
    place = min(place, stop)
    while place < stop and first[place] == second[place]:
        place += 1
    return place


class PrefillPace:
    """How many prompt tokens a step may hold beside sequences that stream.

    Learns what a token of prompt costs here and gives as many as fit in `step_seconds`, in whole multiples of
    `granule` between `granule` and `tokens_max`: a small model on a fast machine reads long prompts in big pieces, a
    large one in small pieces, and who streams sees the same short gap.
    """

    def __init__(self, *, step_seconds: float, granule: int, tokens_max: int) -> None:
        self._step_seconds = step_seconds
        self._granule = granule
        self._tokens_max = max(granule, tokens_max)
        self._seconds_per_token: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens took `seconds`. Steps without a whole granule tell nothing about prompts."""
        if tokens < self._granule:
            return
        cost = seconds / tokens
        known = self._seconds_per_token
        self._seconds_per_token = cost if known is None else 0.7 * known + 0.3 * cost

    def tokens(self, decoding: int = 0) -> int:
        """The bound for the next step, beside so many that decode: with them the step is whole multiples again."""
        fitting = self._granule
        if self._seconds_per_token is not None:
            fitting = int(self._step_seconds / max(self._seconds_per_token, 1e-9))
        bound = max(self._granule, min(self._tokens_max, fitting - fitting % self._granule))
        bound -= decoding % self._granule
        return bound if 2 * bound >= self._granule else bound + self._granule
