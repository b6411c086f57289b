"""Computed beginnings that are kept for prompts that begin the same way. Pure: what is kept of each is the engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from llmvisor_runtimes.prefill import common_prefix

State = TypeVar("State")


class Kept(NamedTuple, Generic[State]):
    """The state after these tokens."""

    tokens: list[int]
    state: State
    size_bytes: int
    can_cut: bool
    """The state after fewer of the tokens can be made from it."""


class Match(NamedTuple, Generic[State]):
    """The first `length` tokens of a prompt are those of `kept`."""

    kept: Kept[State]
    length: int


class PrefixCache(Generic[State]):
    """At most `sequences_max` states and `bytes_max` bytes; the one used longest ago goes first."""

    def __init__(self, *, sequences_max: int, bytes_max: int) -> None:
        self._sequences_max = sequences_max
        self._bytes_max = bytes_max
        self._kept: list[Kept[State]] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def match(self, tokens: Sequence[int], length_max: int) -> Match[State] | None:
        """The longest beginning of `tokens`, at most `length_max` of them; it counts as used now."""
        best: Match[State] | None = None
        for kept in self._kept:
            length = min(length_max, common_prefix(kept.tokens, tokens))
            if length < len(kept.tokens) and not kept.can_cut:
                continue
            if length and (best is None or length > best.length):
                best = Match(kept, length)
        if best is not None:
            self._kept.remove(best.kept)
            self._kept.append(best.kept)
        return best

    def covers(self, tokens: Sequence[int], but: int) -> bool:
        """Whether all of these tokens but so many are kept already."""
        return any(common_prefix(kept.tokens, tokens) >= len(tokens) - but for kept in self._kept if kept.can_cut)

    def put(self, tokens: list[int], state: State, size_bytes: int, *, can_cut: bool) -> None:
        """Keep a state; those whose tokens it begins with are in it and go, where it can be cut."""
        if not tokens or size_bytes > self._bytes_max or not self._sequences_max:
            return
        self._drop(lambda kept: kept.tokens == tokens or (can_cut and kept.tokens == tokens[: len(kept.tokens)]))
        self._kept.append(Kept(tokens, state, size_bytes, can_cut))
        self.size_bytes += size_bytes
        while len(self._kept) > self._sequences_max or self.size_bytes > self._bytes_max:
            self.size_bytes -= self._kept.pop(0).size_bytes

    def clear(self) -> None:
        """Keep nothing."""
        self._drop(lambda _kept: True)

    def _drop(self, unwanted: Callable[[Kept[State]], bool]) -> None:
        self._kept = [kept for kept in self._kept if not unwanted(kept)]
        self.size_bytes = sum(kept.size_bytes for kept in self._kept)
