"""GGUF as bytes: metadata and tensor table, every number checked against the file before it is used.

The format is ggml's `docs/gguf.md`; what is refused follows `ggml/src/gguf.cpp`, so that a file which passes here is
not refused there. The file is read through a small window and never mapped: a mapped file that someone cuts while it
is read kills its reader. What nobody asks for (vocabularies, merges) is skipped unread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import msgspec

from llmvisor import limits
from llmvisor.models import gguf_types

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
DIMENSIONS_MAX = 4
TENSOR_NAME_BYTES_MAX = 63
ELEMENTS_MAX = 2**63 - 1

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Scalar = str | int | float | bool


class Malformed(Exception):
    """The bytes are no GGUF that could be loaded; the text says why, as a sentence about `it`, the file."""


class Array(msgspec.Struct, frozen=True):
    """An array of the metadata; `values` only for short arrays of numbers that were asked for."""

    count: int
    values: tuple[int | float, ...] = ()


class TensorTable(msgspec.Struct, frozen=True):
    """The tensors of a file, together."""

    elements_by_type: dict[str, int]
    names: frozenset[str]
    data_bytes: int
    """Without the padding between tensors."""
    data_end: int
    """Where the last tensor's data ends, from the beginning of the data."""
    embedding_rows: int
    """Of the token embedding; 0 where there is none."""


class Gguf(msgspec.Struct, frozen=True):
    """All that was read."""

    version: int
    metadata: dict[str, Scalar | Array]
    tensors: TensorTable


def parse(descriptor: int, file_bytes: int, *, wanted: Callable[[str], bool]) -> Gguf:
    """Read the header of an open file of that size. Raises `Malformed`, or OSError where the disk fails.

    `wanted` says which keys' texts and arrays are kept. Blocks on the disk.
    """
    window = _Window(descriptor, file_bytes)
    version = _version(window)
    tensor_count = window.count("tensors", limits.gguf_tensors_max)
    entry_count = window.count("metadata entries", limits.gguf_metadata_entries_max)
    metadata = _metadata(window, entry_count, wanted)
    alignment = _alignment(metadata)
    tensors = _tensors(window, tensor_count, alignment)
    if tensor_count:
        data_start = _padded(window.position, alignment)
        if data_start + tensors.data_end > file_bytes:
            missing = data_start + tensors.data_end - file_bytes
            raise Malformed(f"it is cut: {missing} bytes of its tensors are missing (a download that did not finish?)")
    return Gguf(version=version, metadata=metadata, tensors=tensors)


class _Window:
    """A file read front to back through a buffer of `gguf_read_bytes`."""

    def __init__(self, descriptor: int, file_bytes: int) -> None:
        self._descriptor = descriptor
        self._file_bytes = file_bytes
        self._buffer = b""
        self._start = 0
        self._at = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, layout: struct.Struct) -> int | float:
        """One number."""
        at = self._need(layout.size)
        self._at = at + layout.size
        return layout.unpack_from(self._buffer, at)[0]

    def unsigned(self, layout: struct.Struct = _U32) -> int:
        return int(self.take(layout))

    def count(self, what: str, count_max: int) -> int:
        """A number of things that follow, refused before anything is done about them."""
        count = self.unsigned(_U64)
        if count > count_max:
            raise Malformed(f"it claims {count} {what}, over the bound of {count_max}")
        return count

    def text(self, what: str, bytes_max: int) -> str:
        """A text, decoded; bytes that are no UTF-8 become U+FFFD."""
        length = self.unsigned(_U64)
        if length > bytes_max:
            raise Malformed(f"{what} is {length} bytes long, over the bound of {bytes_max}")
        at = self._need(length)
        self._at = at + length
        return self._buffer[at : at + length].decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        self._check_end(self.position + length)
        self._at += length

    def skip_texts(self, count: int) -> None:
        """Pass over so many texts. A vocabulary has 150,000, so this loop stays in local names."""
        unpack, size = _U64.unpack_from, _U64.size
        while count:
            at = self._need(size)
            buffer, last = self._buffer, len(self._buffer) - size
            while count and at <= last:
                at += size + unpack(buffer, at)[0]
                count -= 1
            self._at = at
            self._check_end(self.position)

    def _need(self, length: int) -> int:
        """Where in the buffer the next `length` bytes are."""
        if self._at + length > len(self._buffer):
            self._check_end(self.position + length)
            self._start, self._at = self.position, 0
            self._buffer = os.pread(self._descriptor, max(length, limits.gguf_read_bytes), self._start)
            if len(self._buffer) < length:
                raise Malformed(f"it was cut while it was read, at byte {self._start + len(self._buffer)}")
        return self._at

    def _check_end(self, end: int) -> None:
        if end > self._file_bytes:
            raise Malformed(f"it ends inside its header, at byte {self._file_bytes} (a download that did not finish?)")
        if end > limits.gguf_header_bytes_max:
            raise Malformed(f"its header is over the bound of {limits.gguf_header_bytes_max} bytes")


def _version(window: _Window) -> int:
    window.skip(len(MAGIC))
    version = window.unsigned()
    if version & 0xFFFF == 0 and version:
        raise Malformed("it is a big-endian GGUF, which this machine cannot read: convert it with gguf-convert-endian")
    if version < 2:
        raise Malformed(f"it is GGUF version {version}, which llama.cpp reads no more: convert the model again")
    if version > 3:
        raise Malformed(f"it is GGUF version {version}; versions 2 and 3 can be read")
    return version


def _metadata(window: _Window, count: int, wanted: Callable[[str], bool]) -> dict[str, Scalar | Array]:
    entries: dict[str, Scalar | Array] = {}
    seen: set[str] = set()
    for _ in range(count):
        key = window.text("a metadata key", limits.gguf_key_bytes_max)
        if not key:
            raise Malformed("a metadata key is empty")
        if key in seen:
            raise Malformed(f"metadata key {key!r} occurs twice")
        seen.add(key)
        value = _value(window, key, keep=wanted(key))
        if value is not None:
            entries[key] = value
    return entries


def _value(window: _Window, key: str, *, keep: bool) -> Scalar | Array | None:
    kind = window.unsigned()
    if kind == gguf_types.ARRAY:
        return _array(window, key, keep=keep)
    if kind == gguf_types.TEXT:
        if keep:
            return window.text(f"metadata {key!r}", limits.gguf_text_bytes_max)
        window.skip_texts(1)
        return None
    value = window.take(_layout(key, kind))
    return bool(value) if kind == gguf_types.BOOL else value


def _array(window: _Window, key: str, *, keep: bool) -> Array:
    kind = window.unsigned()
    count = window.unsigned(_U64)
    if kind == gguf_types.ARRAY:
        raise Malformed(f"metadata {key!r} is an array of arrays")
    if kind == gguf_types.TEXT:
        # Each text has at least its length: a claim of more than fits is refused before the first is read.
        if count * _U64.size > limits.gguf_header_bytes_max:
            raise Malformed(f"metadata {key!r} claims {count} texts")
        window.skip_texts(count)
        return Array(count)
    layout = _layout(key, kind)
    if keep and count <= limits.gguf_array_kept_max:
        return Array(count, tuple(window.take(layout) for _ in range(count)))
    window.skip(count * layout.size)
    return Array(count)


def _layout(key: str, kind: int) -> struct.Struct:
    layout = gguf_types.SCALARS.get(kind)
    if layout is None:
        raise Malformed(f"metadata {key!r} is of the unknown type {kind}")
    return layout


def _alignment(metadata: dict[str, Scalar | Array]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise Malformed(f"its alignment is {alignment!r}, which is no power of two")
    return alignment


def _tensors(window: _Window, count: int, alignment: int) -> TensorTable:
    elements_by_type: dict[str, int] = {}
    names: set[str] = set()
    data_bytes = data_end = embedding_rows = 0
    for _ in range(count):
        name = window.text("a tensor's name", TENSOR_NAME_BYTES_MAX)
        if name in names:
            raise Malformed(f"tensor {name!r} occurs twice")
        names.add(name)
        shape = _shape(window, name)
        kind = _tensor_type(window, name)
        elements = _elements(name, shape, kind)
        offset = window.unsigned(_U64)
        if offset % alignment:
            raise Malformed(f"tensor {name!r} begins at {offset}, which is not aligned to {alignment}")
        if offset != (expected := _padded(data_end, alignment)):
            raise Malformed(f"tensor {name!r} begins at {offset}, where {expected} is free")
        size = elements // kind.block_elements * kind.block_bytes
        data_bytes += size
        data_end = offset + size
        elements_by_type[kind.name] = elements_by_type.get(kind.name, 0) + elements
        if name == "token_embd.weight" and len(shape) > 1:
            embedding_rows = shape[1]
    return TensorTable(
        elements_by_type=elements_by_type,
        names=frozenset(names),
        data_bytes=data_bytes,
        data_end=data_end,
        embedding_rows=embedding_rows,
    )


def _shape(window: _Window, name: str) -> tuple[int, ...]:
    dimensions = window.unsigned()
    if dimensions > DIMENSIONS_MAX:
        raise Malformed(f"tensor {name!r} has {dimensions} dimensions, over the bound of {DIMENSIONS_MAX}")
    return tuple(window.unsigned(_U64) for _ in range(dimensions))


def _tensor_type(window: _Window, name: str) -> gguf_types.TensorType:
    number = window.unsigned()
    if number in gguf_types.REMOVED_TENSOR_TYPES:
        raise Malformed(f"tensor {name!r} is of type {number}, which llama.cpp reads no more: convert the model again")
    kind = gguf_types.TENSOR_TYPES.get(number)
    if kind is None:
        raise Malformed(f"tensor {name!r} is of the unknown type {number} (made for a newer llama.cpp?)")
    return kind


def _elements(name: str, shape: tuple[int, ...], kind: gguf_types.TensorType) -> int:
    elements = 1
    for length in shape:
        elements *= length
        if length > ELEMENTS_MAX or elements > ELEMENTS_MAX:
            raise Malformed(f"tensor {name!r} has an absurd shape: {shape}")
    row = shape[0] if shape else 1
    if row % kind.block_elements:
        raise Malformed(
            f"tensor {name!r} has rows of {row}, which is no multiple of {kind.block_elements} ({kind.name})"
        )
    return elements


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
