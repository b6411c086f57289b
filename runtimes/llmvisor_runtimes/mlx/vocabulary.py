"""Text to tokens and back, by a folder's `tokenizer.json`."""

# pyright: standard
# The library of tokenizers ships stubs without types of their contents.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from llmvisor_runtimes.backend import LoadError, RequestError

_NONE = -1
_SPACE_SIGN = "▁"
"""Stands for a space in the tokens of SentencePiece."""
_WELL_KNOWN_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "</s>",
)
"""They end a generation wherever a tokenizer has them as special tokens, as with llama.cpp: many folders name but one
of the tokens that their model ends with."""


class _Decoder(msgspec.Struct):
    type: str = ""
    decoders: list[_Decoder] = []


class _TokenizerFile(msgspec.Struct):
    decoder: _Decoder | None = None


class Vocabulary:
    """A loaded model's vocabulary. Tokenizing is for one thread at a time; the rest for any."""

    def __init__(self, path: Path, *, bos_token: str, end_token: str, end_token_ids: Sequence[int]) -> None:
        """Raises `LoadError` (permanent) for a file that is no tokenizer."""
        source = path.read_bytes()
        try:
            self._tokenizer = Tokenizer.from_buffer(source)
            decoder = msgspec.json.decode(source, type=_TokenizerFile).decoder
        except Exception as error:  # the library raises bare `Exception`
            raise LoadError(f"{path.name} cannot be read: {error}", permanent=True) from error
        self._byte_level = decoder is not None and _has_byte_level(decoder)
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {id for id, token in added.items() if token.special}
        self._added = {id: token.content.encode() for id, token in added.items()}
        self.tokens = self._tokenizer.get_vocab_size(with_added_tokens=True)
        """Tokens that have a text."""
        self.size = self.tokens
        """Rows of logits: models are often padded beyond their tokens. Set once the model is there."""
        leading = self._tokenizer.encode("", add_special_tokens=True).ids
        named = self._tokenizer.token_to_id(bos_token) if bos_token else None
        self.bos: int = leading[0] if leading else _NONE if named is None else named
        self.adds_bos = bool(leading) and (named is None or leading[0] == named)
        self.end_tokens = self._ends(end_token, end_token_ids)
        """Tokens that end a generation."""
        self._plain: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        self._tokenizer.encode_special_tokens = not parse_special
        # A text from JSON may hold half a surrogate pair, which has no UTF-8.
        whole = text.encode("utf-8", "replace").decode()
        return self._tokenizer.encode(whole, add_special_tokens=add_special).ids

    def tokenize_bytes(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """The same for UTF-8."""
        return self.tokenize(data.decode("utf-8", "replace"), add_special=add_special, parse_special=parse_special)

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
        return b"".join(map(self.written_piece, tokens)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a generated text; none for control tokens."""
        return b"" if token in self._control else self.written_piece(token)

    def written_piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens written out."""
        piece = self._plain.get(token)
        if piece is None:
            piece = self._plain[token] = self._read_piece(token)
        return piece

    def check(self, tokens: Sequence[int], param: str = "tokens") -> None:
        """Raises `RequestError` where a token is none of this vocabulary."""
        if tokens and (min(tokens) < 0 or max(tokens) >= self.size):
            wrong = next(token for token in tokens if not 0 <= token < self.size)
            raise RequestError("invalid_value", f"token {wrong} is not in the vocabulary of {self.size}", param)

    def _read_piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTES.get(sign) or sign.encode() for sign in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        return text.replace(_SPACE_SIGN, " ").encode()

    def _ends(self, end_token: str, named: Sequence[int]) -> frozenset[int]:
        ends = {id for id in named if 0 <= id < self.tokens}
        for text in (end_token, *_WELL_KNOWN_ENDS):
            id = self._tokenizer.token_to_id(text) if text else None
            if id is not None and (text == end_token or id in self._control):
                ends.add(id)
        return frozenset(ends)


def _has_byte_level(decoder: _Decoder) -> bool:
    return decoder.type == "ByteLevel" or any(map(_has_byte_level, decoder.decoders))


def _signs_of_bytes() -> dict[str, bytes]:
    """What each sign of a byte-level token stands for: GPT-2's table (`bytes_to_unicode` in its encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    signs = {chr(byte): bytes([byte]) for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return signs | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


_BYTES = _signs_of_bytes()
