"""Whether a PNG unpacks to what its size says: libmtmd's decoder unpacks all there is before it looks. Pure."""

from __future__ import annotations

import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_BYTES_MAX = 8
"""Four channels of 16 bits."""
_ROW_BYTES_MAX = 4
"""What comes on top for each row: a filter's number, in up to two passes and more where it is interlaced."""
_SLACK_BYTES = 1024
_PIECE_BYTES = 1024 * 1024


def unpacks_wrong(file: bytes) -> bool:
    """Whether it is a PNG whose data are broken, or more than its width and height take (PNG, third edition, 10)."""
    if file[:8] != _PNG:
        return False
    width, height = int.from_bytes(file[16:20]), int.from_bytes(file[20:24])
    left = _PIXEL_BYTES_MAX * width * height + _ROW_BYTES_MAX * height + _SLACK_BYTES
    unpacker = zlib.decompressobj()
    place = 8
    while place + 12 <= len(file) and not unpacker.eof:
        length = int.from_bytes(file[place : place + 4])
        packed = file[place + 8 : place + 8 + length] if file[place + 4 : place + 8] == b"IDAT" else b""
        while packed:
            try:
                left -= len(unpacker.decompress(packed, _PIECE_BYTES))
            except zlib.error:
                return True
            if left < 0:
                return True
            packed = unpacker.unconsumed_tail
        place += 12 + length
    return False
