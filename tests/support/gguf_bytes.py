"""GGUF files made by hand, byte by byte, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
_LAYOUTS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}

TYPE_F32 = 0
TYPE_F16 = 1
TYPE_Q4_1 = 3


class Tensor(NamedTuple):
    """One row of the tensor table; an `offset` of None takes the next free place."""

    name: str
    shape: Sequence[int]
    type: int
    data_bytes: int
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    """A length and that many bytes."""
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def number(kind: int, value: float) -> bytes:
    """A typed number, as a value of the metadata."""
    return struct.pack("<I" + _LAYOUTS[kind], kind, value)


def string(value: str | bytes) -> bytes:
    """A typed text, as a value of the metadata."""
    return struct.pack("<I", TEXT) + text(value)


def array(kind: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    """A typed array of items that are packed already; `count` is what it claims."""
    return struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count) + b"".join(items)


def texts(values: Sequence[str]) -> bytes:
    return array(TEXT, [text(value) for value in values])


def numbers(kind: int, values: Sequence[float]) -> bytes:
    return array(kind, [struct.pack("<" + _LAYOUTS[kind], value) for value in values])


METADATA: Mapping[str, bytes] = {
    "general.architecture": string("llama"),
    "general.name": string("Tiny"),
    "general.file_type": number(U32, 3),
    "llama.block_count": number(U32, 2),
    "llama.context_length": number(U32, 128),
    "llama.embedding_length": number(U32, 64),
    "llama.feed_forward_length": number(U32, 96),
    "llama.attention.head_count": number(U32, 4),
    "llama.attention.head_count_kv": number(U32, 2),
    "llama.rope.freq_base": number(F32, 10000.0),
    "tokenizer.ggml.model": string("gpt2"),
    "tokenizer.ggml.tokens": texts(["a", "b", "<s>", "</s>"]),
    "tokenizer.ggml.scores": numbers(F32, [0.0, 1.0, 2.0, 3.0]),
    "tokenizer.ggml.bos_token_id": number(U32, 2),
    "tokenizer.ggml.eos_token_id": number(U32, 3),
    "tokenizer.ggml.add_bos_token": number(BOOL, 1),
    "tokenizer.chat_template": string("{{ messages }}"),
}

TENSORS = (
    Tensor("token_embd.weight", (64, 4), TYPE_Q4_1, 160),
    Tensor("blk.0.attn_norm.weight", (3,), TYPE_F32, 12),
    Tensor("output_norm.weight", (64,), TYPE_F32, 256),
)


def gguf(
    metadata: Mapping[str, bytes] = METADATA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    tensor_count: int | None = None,
    entry_count: int | None = None,
    extra: bytes = b"",
    with_data: bool = True,
) -> bytes:
    """A whole file. `extra` stands between the metadata and the tensor table; counts are what the header claims."""
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if entry_count is None else entry_count,
    )
    header += b"".join(text(key) + value for key, value in metadata.items()) + extra
    end = 0
    for tensor in tensors:
        offset = -(-end // alignment) * alignment if tensor.offset is None else tensor.offset
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        header += text(tensor.name) + shape + struct.pack("<IQ", tensor.type, offset)
        end = offset + tensor.data_bytes
    padding = bytes(-len(header) % alignment)
    return header + padding + bytes(end) if with_data else header
