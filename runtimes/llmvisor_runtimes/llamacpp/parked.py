"""Ended sequences that were moved out of the context into the process's own memory. Pure.

A cache inside the context costs whoever decodes: each step passes over its cells. Out here it costs bytes alone, and
comes back with one copy when a prompt begins the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.media_tokens import boundary
from llmvisor_runtimes.prefill import common_prefix

AdapterSet = tuple[tuple[str, float], ...]
"""The adapters that act, by name and scale, sorted: what a token's state depends on beside the tokens before it."""


class Parked(NamedTuple):
    """A sequence's tokens, and what the engine saved of it."""

    tokens: list[int]
    state: bytearray
    adapters: AdapterSet = ()


class ParkedSequences:
    """At most `bytes_max` of them, the one parked longest ago given up first.

    A copy, either way, has to save at least `gain_tokens_min` tokens.
    """

    def __init__(
        self, *, bytes_max: int, bytes_per_token: int, gain_tokens_min: int = limits.parked_gain_tokens_min
    ) -> None:
        self.gain_tokens_min = gain_tokens_min
        self._bytes_max = bytes_max
        self._bytes_per_token = bytes_per_token
        self._kept: list[Parked] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> Sequence[Parked]:
        """All of them, the one parked last at the end."""
        return self._kept

    def put(self, tokens: list[int], save: Callable[[], bytearray], adapters: AdapterSet = ()) -> bool:
        """Keep a sequence, `save` giving its state; False for one so large that copying it would hold up others.

        One that adds hardly anything to another is not worth the copy, and counts as kept.
        """
        if len(tokens) * self._bytes_per_token > self._bytes_max // limits.parked_share_min:
            return False
        best = self.best(tokens, len(tokens), adapters)
        if best is not None and len(tokens) - best[1] < self.gain_tokens_min:
            return True
        state = save()
        if state:
            self.keep(Parked(tokens, state, adapters))
        return bool(state)

    def best(self, tokens: Sequence[int], reuse_max: int, adapters: AdapterSet = ()) -> tuple[Parked, int] | None:
        """The one with these adapters that begins most like `tokens`, and how many tokens are the same."""
        lengths = [
            boundary(tokens, min(reuse_max, common_prefix(parked.tokens, tokens))) if parked.adapters == adapters else 0
            for parked in self._kept
        ]
        length, place = max(((length, place) for place, length in enumerate(lengths)), default=(0, 0))
        return (self._kept[place], length) if length else None

    def take(self, parked: Parked) -> None:
        """Forget one that goes back into the context."""
        # It may have left already: what makes room for it in the context is parked, which may drop it here.
        if any(kept is parked for kept in self._kept):
            self._kept = [kept for kept in self._kept if kept is not parked]
            self.bytes -= len(parked.state)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept, self.bytes = [], 0

    def keep(self, new: Parked) -> None:
        """Keep one whose state is there already."""
        for kept in list(self._kept):
            if new.adapters == kept.adapters and new.tokens[: len(kept.tokens)] == kept.tokens:
                self.take(kept)  # everything it could serve, the new one can
        self._kept.append(new)
        self.bytes += len(new.state)
        while self.bytes > self._bytes_max:
            self.take(self._kept[0])
