"""The choice of the next token where a grammar says which may come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.sampling import Row, Sampler
from llmvisor_runtimes.resumption import not_resumable
from llmvisor_runtimes.structured import Matcher


class Chooser(Protocol):
    """What chooses one sequence's tokens: a `Sampler`, alone or held to a grammar."""

    @property
    def finished(self) -> bool:
        """The text is complete: nothing more may come."""
        ...

    def remember(self, tokens: Sequence[int]) -> None:
        """Show the prompt to what looks back at it."""
        ...

    @property
    def follows_logits(self) -> bool:
        """To repeat a token it has to see the logits that this was chosen from."""
        ...

    def repeat(self, token: int, row: Row | None) -> None:
        """Become what it was after it had chosen this token, from `row` where it `follows_logits`.

        Raises `RequestError` for one that it would never have chosen.
        """
        ...

    def choose(self, context: LlamaContext, row: Row, output: int) -> int:
        """The next token from `row`, which are the logits of the batch's token number `output`."""
        ...

    def close(self) -> None: ...


class ConstrainedSampler:
    """Chooses among the tokens that a grammar allows; the row of logits stays as it is.

    So log-probabilities are the model's own, of the whole vocabulary, as they are without a grammar: what a temperature
    or a bias does is not in them either.
    """

    def __init__(self, sampler: Sampler, matcher: Matcher) -> None:
        self._sampler = sampler
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        return self._matcher.finished

    def remember(self, tokens: Sequence[int]) -> None:
        self._sampler.remember(tokens)

    @property
    def follows_logits(self) -> bool:
        return self._sampler.follows_logits

    def repeat(self, token: int, row: Row | None) -> None:
        sampler = self._sampler
        if sampler.draws or sampler.follows_logits:
            # A token that nothing else was allowed beside cost no draw.
            size = sampler.vocabulary_size if row is None else row.size
            sampler.repeat_among(token, row, allowed_tokens(self._matcher.mask(), size))
        else:
            sampler.accept(token)
        if not self._matcher.consume(token):
            raise not_resumable(f"the grammar does not allow token {token}, which has been sent")

    def choose(self, context: LlamaContext, row: Row, output: int) -> int:
        """As `Chooser`. Raises `RequestError` where the grammar cannot be followed further."""
        del context, output
        token = self._sampler.choose_among(row, allowed_tokens(self._matcher.mask(), row.size))
        if not self._matcher.consume(token):
            raise RequestError("internal_error", f"token {token} was chosen, which the grammar does not allow")
        return token

    def close(self) -> None:
        self._sampler.close()


def allowed_tokens(mask: bytearray, vocabulary_size: int) -> NDArray[np.intp]:
    """The ids of the bits that are set, in order. Raises `RequestError` where there are none."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocabulary_size, bitorder="little")
    tokens = np.flatnonzero(bits.view(np.bool_))
    if not tokens.size:
        raise RequestError("invalid_value", "the grammar allows no token of this model's here", "grammar")
    return tokens
