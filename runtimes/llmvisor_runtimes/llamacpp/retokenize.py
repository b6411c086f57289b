"""Tokenizing a text that goes on from one seen before: only what is new is tokenized. Pure.

Each turn of a conversation sends all the turns before it. A byte-pair tokenizer splits a text from left to right into
words and merges inside these, so what lies well before the place where two texts part has the same tokens in both. The
rest is tokenized from a little before that place, and counts only where the two agree on all that they both cover.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from llmvisor_runtimes import limits

_CONTINUATION = 0b1000_0000
_CONTINUATION_MASK = 0b1100_0000


class _Seen(NamedTuple):
    text: bytes
    tokens: list[int]
    ends: list[int]
    """Where each token ends in the text, in bytes."""


class Retokenizer:
    """Tokenizes, and remembers the last texts. For byte-pair vocabularies, whose tokens' bytes add up to the text.

    `tokenize` gives the tokens of a whole text, `piece` the bytes of a token. One thread at a time.
    """

    def __init__(self, tokenize: Callable[[bytes], list[int]], piece: Callable[[int], bytes]) -> None:
        self._tokenize = tokenize
        self._piece = piece
        self._seen: list[_Seen] = []

    def tokens(self, text: bytes) -> list[int]:
        """The tokens of `text`, the same as `tokenize` gives."""
        if len(text) < limits.retokenize_text_bytes_min:
            return self._tokenize(text)
        shared, known = max(
            ((common_bytes(seen.text, text), seen) for seen in self._seen), key=lambda pair: pair[0], default=(0, None)
        )
        kept = self._kept(known, shared, text) if known else None
        if known is None or kept is None:
            return self._remember(text, self._tokenize(text), _Seen(b"", [], []), 0, replaced=None)
        count, rest = kept
        goes_on = 2 * shared > len(known.text)
        return self._remember(text, known.tokens[:count] + rest, known, count, replaced=known if goes_on else None)

    def _kept(self, known: _Seen, shared: int, text: bytes) -> tuple[int, list[int]] | None:
        """How many tokens of `known` hold for `text`, and the tokens after them; None where that is not certain."""
        overlap = limits.retokenize_overlap_tokens
        count = bisect_right(known.ends, shared - limits.retokenize_margin_bytes) - overlap
        while count > 0 and text[known.ends[count - 1]] & _CONTINUATION_MASK == _CONTINUATION:
            count -= 1  # not inside a character
        if count <= 0:
            return None
        rest = self._tokenize(text[known.ends[count - 1] :])
        agree = rest[:overlap] == known.tokens[count : count + overlap]
        return (count, rest) if agree else None

    def _remember(
        self, text: bytes, tokens: list[int], known: _Seen, count: int, *, replaced: _Seen | None
    ) -> list[int]:
        pieces = [self._piece(token) for token in tokens[count:]]
        start = known.ends[count - 1] if count else 0
        if b"".join(pieces) == text[start:]:
            ends = known.ends[:count] + list(accumulate(map(len, pieces), initial=start))[1:]
            self._seen = [seen for seen in self._seen if seen is not replaced]
            self._seen.append(_Seen(text, list(tokens), ends))
            self._make_room()
        return tokens

    def _make_room(self) -> None:
        while len(self._seen) > limits.retokenize_texts_max or (
            sum(len(seen.text) for seen in self._seen) > limits.retokenize_bytes_max
        ):
            del self._seen[0]


def common_bytes(first: bytes, second: bytes) -> int:
    """How many bytes two texts have in common from the start."""
    stop = min(len(first), len(second))
    if first[:stop] == second[:stop]:
        return stop
    start = 0
    while stop - start > 1:  # they part somewhere in [start, stop)
        middle = (start + stop) // 2
        if first[start:middle] == second[start:middle]:
            start = middle
        else:
            stop = middle
    return start
