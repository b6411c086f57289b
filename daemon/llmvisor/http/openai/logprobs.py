"""Log-probabilities in the shapes of chat and of legacy completions. Pure."""

from __future__ import annotations

import codecs

import msgspec

from llmvisor.http.openai.answers import finite
from llmvisor_runtimes.protocol import TokenLogprob


class ChatTopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class LegacyLogprobs(msgspec.Struct):
    """Of `/v1/completions`: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters of the choice's text before each token."""


def chat_logprobs(tokens: list[TokenLogprob]) -> ChatLogprobs:
    """`bytes` is exact; `token` shows U+FFFD for a token that is a part of a character."""
    return ChatLogprobs([_chat_token(token) for token in tokens])


def _chat_token(token: TokenLogprob) -> ChatTokenLogprob:
    return ChatTokenLogprob(
        token=token.piece.decode(errors="replace"),
        logprob=finite(token.logprob or 0.0),
        bytes=list(token.piece),
        top_logprobs=[
            ChatTopLogprob(top.piece.decode(errors="replace"), finite(top.logprob), list(top.piece))
            for top in token.top
        ],
    )


class LegacyLogprobsWriter:
    """Turns the tokens of one choice, batch by batch, into legacy form."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def write(self, tokens: list[TokenLogprob]) -> LegacyLogprobs:
        """The next tokens of the choice; offsets go on from the last."""
        return LegacyLogprobs(
            tokens=[legacy_token(token.piece) for token in tokens],
            token_logprobs=[None if token.logprob is None else finite(token.logprob) for token in tokens],
            top_logprobs=[_legacy_top(token) for token in tokens],
            text_offset=[self._advance(token.piece) for token in tokens],
        )

    def _advance(self, piece: bytes) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def legacy_token(piece: bytes) -> str:
    """The text of a token; `bytes:\\xe2\\x82` for one that is a part of a character, as OpenAI writes it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _legacy_top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None  # nothing predicts the first token of an echoed prompt
    top = {legacy_token(one.piece): finite(one.logprob) for one in token.top}
    # The chosen token is always among them, as OpenAI has it.
    top.setdefault(legacy_token(token.piece), finite(token.logprob))
    return top
