"""Guessing the next tokens, so that one batch can check several. Pure.

A guess costs a place in a batch and never changes the text: after each guessed token the sequence's own sampler
chooses, and the guesses hold for as long as it chooses the same (prompt lookup decoding, A. Saxena 2023; with sampling
this is the exact case of speculative sampling in which the draft is certain of itself).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

from llmvisor_runtimes import limits

_TOKEN_BYTES = array("i").itemsize
_SEARCHES_MAX = 16


class DraftPace:
    """How many tokens are worth guessing: more while guesses are right, fewer and less often while they are wrong."""

    def __init__(self, *, tokens_max: int = limits.draft_tokens_max) -> None:
        self._tokens_max = tokens_max
        self._misses = 0
        self._rest_tokens = 0
        self.tokens = min(tokens_max, limits.draft_tokens_first)
        """For the next guess."""

    @property
    def resting(self) -> bool:
        """Guesses have been wrong of late: only a very good one is worth it."""
        return self._rest_tokens > 0

    def observe(self, drafted: int, accepted: int) -> None:
        """One step is over, in which so many tokens were guessed and so many of them right."""
        if drafted == 0:
            self._rest_tokens = max(0, self._rest_tokens - 1)
            return
        if accepted == drafted:
            self.tokens = min(self._tokens_max, max(self.tokens, 2 * drafted))
        else:
            self.tokens = min(self._tokens_max, max(limits.draft_tokens_min, accepted + 1))
        if 2 * accepted >= drafted:
            self._misses = 0
            self._rest_tokens = 0
        else:
            self._misses = min(self._misses + 1, limits.draft_misses_max)
            self._rest_tokens = 2 ** (self._misses + 1)


class Drafter(Protocol):
    """Guesses one sequence's tokens."""

    @property
    def wanted(self) -> int:
        """Tokens that are worth guessing next; 0 for none."""
        ...

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `tokens`, which only ever grow from call to call."""
        ...

    def observe(self, drafted: int, accepted: int) -> None:
        """A step is over, in which so many tokens were guessed and so many of them right."""
        ...

    def close(self) -> None:
        """Nothing is guessed any more."""
        ...


class LookupDrafter:
    """Guesses that what followed the last few tokens before will follow them again."""

    def __init__(self) -> None:
        self._pace = DraftPace()
        self._packed = bytearray()
        self._distance = 0
        """How far back the last guess was copied from; 0 before the first."""

    @property
    def wanted(self) -> int:
        return self._pace.tokens

    @property
    def resting(self) -> bool:
        """Only very good guesses are made at the moment."""
        return self._pace.resting

    def observe(self, drafted: int, accepted: int) -> None:
        self._pace.observe(drafted, accepted)

    def close(self) -> None: ...

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        seen = len(self._packed) // _TOKEN_BYTES
        self._packed += array("i", tokens[seen:]).tobytes()
        distance, likeness = self._best(tokens)
        if distance == 0:
            return []
        self._distance = distance
        count = min(count, limits.lookup_trust * likeness)
        # What followed may end with what is there: then it goes round, as a text that repeats itself does.
        return [tokens[place % distance - distance] for place in range(count)]

    def _best(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How far back the text was most like its end now, and for how many tokens; (0, 0) where nowhere."""
        for length in limits.lookup_ngram_tokens:
            # A text that is being copied goes on there, though parts of it may stand at later places too.
            places = [len(tokens) - self._distance] if self._distance else []
            places += self._find(length)
            likenesses = [(_likeness(tokens, place), place) for place in places]
            likeness, place = max(likenesses, default=(0, 0))
            if likeness >= length:
                return len(tokens) - place, likeness
            if self._pace.resting:
                break
        return 0, 0

    def _find(self, length: int) -> list[int]:
        """Places behind the same `length` tokens as at the end, the latest first, few."""
        packed, size = self._packed, length * _TOKEN_BYTES
        places: list[int] = []
        if len(packed) <= size:
            return places
        pattern = packed[-size:]
        start = max(0, len(packed) - limits.lookup_window_tokens * _TOKEN_BYTES)
        stop = len(packed) - _TOKEN_BYTES
        for _ in range(_SEARCHES_MAX):
            found = packed.rfind(pattern, start, stop)
            if found < 0 or len(places) == limits.lookup_places_max:
                break
            if found % _TOKEN_BYTES == 0:
                places.append(found // _TOKEN_BYTES + length)
            stop = found + size - 1
        return places


def _likeness(tokens: Sequence[int], place: int) -> int:
    """How many tokens before `place` are the same as those at the end."""
    most = min(place, limits.lookup_likeness_tokens_max)
    length = 0
    while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
