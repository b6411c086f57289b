"""A vocabulary of characters, for choices without a model."""

from __future__ import annotations

from collections.abc import Sequence

from llmvisor_runtimes.backend import RequestError

BOS, END, MARK = 1, 2, 3


class Letters:
    """Each token is its code point; the first few are control tokens."""

    bos = BOS
    adds_bos = True
    end_tokens = frozenset({END})

    def piece(self, token: int) -> bytes:
        return b"" if token <= MARK else chr(token).encode()

    def written_piece(self, token: int) -> bytes:
        return {BOS: b"<s>", END: b"</s>", MARK: b"<mark>"}.get(token) or chr(token).encode()

    def check(self, tokens: Sequence[int], param: str) -> None:
        if any(token < 0 for token in tokens):
            raise RequestError("invalid_value", "below 0", param)
