"""Log-probabilities of tokens, from the logits that an engine gives."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes.protocol import TokenLogprob, TopLogprob

Row = NDArray[np.float32]


class WritesPieces(Protocol):
    """A vocabulary, as far as it is needed here."""

    def written_piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens written out."""
        ...


def token_logprob(row: Row, token: int, top: int, vocabulary: WritesPieces) -> TokenLogprob:
    """The log-probability of a token in a row of raw logits, and the `top` likeliest beside it."""
    peak = float(row.max())
    # In float64 the sum over a vocabulary of any size is exact enough to compare runs by.
    normalizer = peak + math.log(float(np.exp(row - peak).sum(dtype=np.float64)))
    best: list[TopLogprob] = []
    if top:
        ids = np.argpartition(row, -top)[-top:] if top < row.size else np.arange(row.size)
        ids = ids[np.lexsort((ids, -row[ids]))]
        best = [
            TopLogprob(token=int(id), piece=vocabulary.written_piece(int(id)), logprob=float(row[id]) - normalizer)
            for id in ids
        ]
    return TokenLogprob(
        token=token, piece=vocabulary.written_piece(token), logprob=float(row[token]) - normalizer, top=best
    )
