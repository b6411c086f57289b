"""Text to tokens and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.retokenize import Retokenizer

_NONE = -1


class Vocabulary:
    """A loaded model's vocabulary."""

    def __init__(self, model: object) -> None:
        self.pointer = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self.pointer)
        self.bos: int = llama_cpp.llama_vocab_bos(self.pointer)
        self.eos: int = llama_cpp.llama_vocab_eos(self.pointer)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self.pointer) and self.bos != _NONE
        self.end_tokens = frozenset(
            token for token in range(self.size) if llama_cpp.llama_vocab_is_eog(self.pointer, token)
        )
        """Tokens that end a generation."""
        self.suppressed = self._suppressed()
        """Tokens that the model's file forbids."""
        self._retokenizer = self._make_retokenizer()
        self._plain: dict[int, bytes] = {}
        self._special: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. Raises `RequestError` where llama.cpp cannot tokenize it. One thread at a time."""
        data = text.encode("utf-8", "replace")
        if self._retokenizer is None or not parse_special:
            return self.tokenize_bytes(data, add_special=add_special, parse_special=parse_special)
        tokens = self._retokenizer.tokens(data)
        return [self.bos, *tokens] if add_special and self.adds_bos else tokens

    def tokenize_bytes(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """The same for UTF-8, always from its first byte on."""
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = llama_cpp.llama_tokenize(self.pointer, data, len(data), tokens, room, add_special, parse_special)
        if count < 0 and -count > room:
            room = -count
            tokens = (ctypes.c_int32 * room)()
            count = llama_cpp.llama_tokenize(self.pointer, data, len(data), tokens, room, add_special, parse_special)
        if count < 0:
            raise RequestError("invalid_value", "the text cannot be tokenized", "prompt")
        return tokens[:count]

    def tokenize_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered conversation: special tokens parsed, and one leading token where the model has it.

        Templates differ in whether they write the leading token themselves.
        """
        tokens = self.tokenize(text, add_special=False, parse_special=True)
        if self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens written out."""
        self.check(tokens)
        ids = (ctypes.c_int32 * max(1, len(tokens)))(*tokens)
        room = 16 * len(tokens) + 16
        text = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(self.pointer, ids, len(tokens), text, room, False, True)
        if count < 0:
            room = -count
            text = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_detokenize(self.pointer, ids, len(tokens), text, room, False, True)
        return text.raw[: max(0, count)].decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a generated text; none for control tokens."""
        piece = self._plain.get(token)
        if piece is None:
            piece = self._plain[token] = self._read_piece(token, special=False)
        return piece

    def written_piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens written out."""
        piece = self._special.get(token)
        if piece is None:
            piece = self._special[token] = self._read_piece(token, special=True)
        return piece

    def check(self, tokens: Sequence[int], param: str = "tokens") -> None:
        """Raises `RequestError` where a token is none of this vocabulary."""
        if tokens and (min(tokens) < 0 or max(tokens) >= self.size):
            wrong = next(token for token in tokens if not 0 <= token < self.size)
            raise RequestError("invalid_value", f"token {wrong} is not in the vocabulary of {self.size}", param)

    def text(self, token: int) -> str:
        """A special token's name such as `</s>`; empty where the model has none."""
        return "" if token == _NONE else self.written_piece(token).decode("utf-8", "replace")

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
        if count < 0:
            room = -count
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, room, 0, special)
        return buffer.raw[: max(0, count)]

    def _make_retokenizer(self) -> Retokenizer | None:
        byte_pairs = llama_cpp.llama_vocab_type(self.pointer) == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        if not byte_pairs or llama_cpp.llama_vocab_get_add_eos(self.pointer):
            return None
        return Retokenizer(
            lambda data: self.tokenize_bytes(data, add_special=False, parse_special=True), self.written_piece
        )

    def _suppressed(self) -> tuple[int, ...]:
        count = ctypes.c_int32(0)
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self.pointer, ctypes.byref(count))
        return tuple(tokens[: count.value]) if count.value else ()
