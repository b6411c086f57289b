"""Images and sounds out of a request: decoded, known by their first bytes, and within their bounds. Pure."""

from __future__ import annotations

import binascii
import re

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a segment that has the image's size (ITU T.81, table B.1)."""


def data_url_bytes(url: str, param: str) -> bytes:
    """What a `data:` URL holds. Raises `InvalidRequest`, `UnsupportedOperation` for an address elsewhere."""
    match = _DATA_URL.match(url[:256])
    if match is None:
        if url.startswith("data:"):
            raise InvalidRequest(f"{param}: expected a URL as in data:image/png;base64,…", param=param)
        message = f"{param}: nothing is fetched from other hosts; send the file itself as data:image/png;base64,…"
        raise UnsupportedOperation(message, param=param)
    if match["base64"] is None:
        raise InvalidRequest(f"{param}: expected base64 (data:image/png;base64,…)", param=param)
    return base64_bytes(url[match.end() :], param)


def base64_bytes(text: str, param: str) -> bytes:
    """Raises `InvalidRequest` for what is no base64, empty or too long."""
    if len(text) > (limits.media_bytes_max + 2) // 3 * 4:
        raise InvalidRequest(f"{param}: expected at most {limits.media_bytes_max} bytes", param=param)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, and characters outside ASCII
        raise InvalidRequest(f"{param}: it is not valid base64: {error}", param=param) from None
    if not data:
        raise InvalidRequest(f"{param}: it is empty", param=param)
    return data


def checked_image(data: bytes, param: str) -> bytes:
    """Raises `InvalidRequest` for what is no image that models read, and for one that would unpack to too much."""
    size = image_size(data)
    if size is None:
        raise InvalidRequest(f"{param}: expected a PNG, JPEG, GIF, BMP or WebP image", param=param)
    width, height = size
    if not 0 < width * height <= limits.image_pixels_max:
        message = f"{param}: expected 1 to {limits.image_pixels_max} pixels, found {width}x{height}"
        raise InvalidRequest(message, param=param)
    return data


def checked_sound(data: bytes, param: str) -> bytes:
    """Raises `InvalidRequest` for what is no sound that models read."""
    wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    mp3 = data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)
    if not (wav or mp3 or data[:4] == b"fLaC"):
        raise InvalidRequest(f"{param}: expected WAV, MP3 or FLAC", param=param)
    return data


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as an image's header says them; None for what is no image."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data[:6] in {b"GIF87a", b"GIF89a"} and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data[:2] == b"BM" and len(data) >= 26:
        width, height = data[18:22], data[22:26]
        # A negative height means that the rows come from the top.
        return int.from_bytes(width, "little", signed=True), abs(int.from_bytes(height, "little", signed=True))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return _jpeg_size(data) if data[:2] == b"\xff\xd8" else None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """By the kind of its first chunk (RFC 9649, section 2)."""
    kind = data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position = 2
    for _ in range(limits.jpeg_segments_max):
        if position + 9 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker in _JPEG_FRAMES:
            return int.from_bytes(data[position + 7 : position + 9]), int.from_bytes(data[position + 5 : position + 7])
        # A byte of filling has no length; no other marker without one comes before the frame.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4])
    return None
