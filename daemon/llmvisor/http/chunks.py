"""Long documents cut into chunks that a reranker takes, by the tokens that they were found to have. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_BACK_SHARE = 0.1
"""A chunk may end so much earlier for a blank to be there."""


def chunks(text: str, pieces: Sequence[bytes], room: int, chunks_max: int) -> list[str]:
    """The text in parts of at most about `room` tokens, cut at blanks where there are some; at most so many.

    `pieces` are the bytes of its tokens. Where a tokenizer has changed the text, they tell where its tokens stand
    only about, so who scores the chunks still has to cut what is over.
    """
    ends = list(accumulate(map(len, pieces)))
    if len(ends) <= room or not ends[-1]:
        return [text]
    # Characters of the text for each byte of the pieces: they are seldom the same, and always proportional.
    scale = len(text) / ends[-1]
    parts: list[str] = []
    begin_token = begin = 0
    while begin < len(text) and len(parts) < chunks_max:
        end_token = min(begin_token + room, len(ends))
        end = len(text) if end_token == len(ends) else max(begin + 1, math.floor(ends[end_token - 1] * scale))
        if end < len(text):
            end = _at_blank(text, begin, end)
        parts.append(text[begin:end])
        begin = end
        begin_token = bisect_right(ends, end / scale)
    return parts


def best(scores: Sequence[float], counts: Sequence[int]) -> list[float]:
    """The highest of each document's scores, where document i has `counts[i]` of them, one after another."""
    ends = list(accumulate(counts))
    return [max(scores[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _at_blank(text: str, begin: int, end: int) -> int:
    least = end - max(1, int((end - begin) * _BACK_SHARE))
    blank = max(text.rfind(" ", least, end), text.rfind("\n", least, end))
    return blank + 1 if blank >= least > begin else end
