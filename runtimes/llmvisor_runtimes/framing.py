"""Frames to bytes and back: a 4-byte little-endian length, then MessagePack of one Struct of `protocol.py`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import Command, Frame, ProtocolViolation, Report

T = TypeVar("T")
_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()
COMMAND_DECODER: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
REPORT_DECODER: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(frame: Frame) -> bytes:
    """A frame's bytes, length included.

    Raises ValueError where the frame would be longer than `frame_bytes_max`.
    """
    buffer = bytearray(_LENGTH.size)
    _ENCODER.encode_into(frame, buffer, _LENGTH.size)
    length = len(buffer) - _LENGTH.size
    if length > limits.frame_bytes_max:
        raise ValueError(f"a frame of {length} bytes is over the bound of {limits.frame_bytes_max}")
    _LENGTH.pack_into(buffer, 0, length)
    return bytes(buffer)


class FrameReader(Generic[T]):
    """Cuts a byte stream into frames.

    Feed it what a read gave; it yields each whole frame, decoded. Raises `ProtocolViolation` for anything that is no
    frame, after which the stream cannot be trusted any more.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[T], begun: bytes = b"") -> None:
        self._decoder = decoder
        self._buffer = bytearray(begun)

    @property
    def rest(self) -> bytes:
        """What has come of a frame that is not whole yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Iterator[T]:
        """The frames that `data` completes."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > limits.frame_bytes_max:
                    raise ProtocolViolation(f"a frame of {length} bytes is over the bound of {limits.frame_bytes_max}")
                end = start + _LENGTH.size + length
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + _LENGTH.size : end])
                start = end
                yield self._decode(body)
        finally:
            del buffer[:start]

    def close(self) -> None:
        """Say that the stream has ended; raises `ProtocolViolation` if it ended inside a frame."""
        if self._buffer:
            raise ProtocolViolation(f"the stream ended {len(self._buffer)} bytes into a frame")

    def _decode(self, body: bytes) -> T:
        # msgspec raises three unrelated families for malformed input.
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise ProtocolViolation(f"a frame that does not decode: {error}") from error
