"""The mock's vocabulary and the text it writes.

Token ids below 256 are bytes: that is what prompts become. From there on, id = 256 + number * 16 + word, whose text is
the word and the number after a space. The k-th token of a reply has number k, so that a token that is missing, repeated
or out of order shows in ids and in text.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Sequence

from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, TokenLogprob, TopLogprob

WORDS = (
    " amber", " birch", " cedar", " delta", " ember", " frost", " grove", " heath",
    " islet", " jetty", " knoll", " larch", " marsh", " north", " ochre", " pearl",
)  # fmt: skip
FIRST_WORD = 256
VOCABULARY = FIRST_WORD + 16 * 2**20
_BYTES = tuple(bytes([byte]) for byte in range(FIRST_WORD))


def piece(token: int) -> bytes:
    """A token's bytes. Raises ValueError for an id that is none."""
    if 0 <= token < FIRST_WORD:
        return _BYTES[token]
    if not FIRST_WORD <= token < VOCABULARY:
        raise ValueError(f"token id {token} is outside 0 to {VOCABULARY - 1}")
    number, word = divmod(token - FIRST_WORD, 16)
    return f"{WORDS[word]}{number}".encode()


def render(prompt: ChatPrompt) -> str:
    """A conversation as text."""
    tools = "".join([f"<|tool|>{tool.name}{tool.parameters.decode('utf-8', 'replace')}\n" for tool in prompt.tools])
    text = tools + "".join([_rendered(message) for message in prompt.messages])
    return text + "<|assistant|>" if prompt.add_generation_prompt else text


def _rendered(message: ChatMessage) -> str:
    calls = "".join([f"<|call|>{call.name}{call.arguments}" for call in message.tool_calls])
    return f"<|{message.role}|>{message.content}{calls}\n"


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids as bytes, four each, for hashing and for comparing prefixes."""
    return array("I", tokens).tobytes()


def common_prefix_tokens(a: bytes, b: bytes) -> int:
    """Tokens at the beginning of both, each as `packed` gives it."""
    least, most = 0, min(len(a), len(b)) // 4
    while least < most:
        middle = (least + most + 1) // 2
        if a[: middle * 4] == b[: middle * 4]:
            least = middle
        else:
            most = middle - 1
    return least


class Reply:
    """The reply to one prompt: which token has which place.

    A prompt that ends with a part of a reply gets the rest of it: a generation that broke off can be taken up again.
    """

    __slots__ = ("_key", "first_number")

    def __init__(self, prompt: Sequence[int], seed: int | None) -> None:
        """`seed` is None where the reply depends on the prompt alone."""
        end = len(prompt)
        while end and prompt[end - 1] >= FIRST_WORD:
            end -= 1
        self.first_number = (prompt[-1] - FIRST_WORD) // 16 + 1 if end < len(prompt) else 0
        key = zlib.crc32(packed(prompt[:end]))
        self._key = key if seed is None else zlib.crc32(str(seed).encode(), key)

    def word(self, number: int) -> int:
        """Which of the 16 words comes with this number."""
        return (((self._key ^ (number * 0x9E3779B1)) & 0xFFFFFFFF) * 0x85EBCA6B >> 24) & 15

    def piece(self, number: int) -> tuple[bytes, int]:
        """The bytes and the id of a token."""
        word = self.word(number)
        return f"{WORDS[word]}{number}".encode(), FIRST_WORD + number * 16 + word

    def run(self, first: int, count: int) -> tuple[str, list[int]]:
        """`count` tokens from number `first` on: their text and their ids."""
        if count == 1:
            word = self.word(first)
            return f"{WORDS[word]}{first}", [FIRST_WORD + first * 16 + word]
        words = [self.word(number) for number in range(first, first + count)]
        text = "".join([f"{WORDS[word]}{number}" for number, word in enumerate(words, first)])
        return text, [FIRST_WORD + number * 16 + word for number, word in enumerate(words, first)]


def token_logprob(token: int, alternatives: int) -> TokenLogprob:
    """A token's log-probability with as many alternatives, itself the likeliest; together they stay below 1."""
    chosen = 0.5 + (token * 0x9E3779B1 >> 8 & 0xFF) / 1024
    top: list[TopLogprob] = []
    for rank, other in enumerate(_alternatives(token, alternatives)):
        probability = chosen if rank == 0 else (1 - chosen) * 0.5**rank
        top.append(TopLogprob(other, piece(other), math.log(probability)))
    return TokenLogprob(token, piece(token), math.log(chosen), top)


def _alternatives(token: int, count: int) -> list[int]:
    """`count` different tokens, `token` first: other words of the same number, then of the next; or other bytes."""
    if token < FIRST_WORD:
        return [(token + rank) % FIRST_WORD for rank in range(count)]
    first, word = token & ~15, token & 15
    return [first + (rank // 16) * 16 + (word + rank) % 16 for rank in range(count)]
