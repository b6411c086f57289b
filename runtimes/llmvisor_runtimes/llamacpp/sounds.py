"""How long a sound is, as its headers say: what would unpack to too much is not unpacked. Pure."""

from __future__ import annotations

import re
from itertools import islice
from math import inf

from llmvisor_runtimes import limits

_MP3_THIRD = re.escape(bytes(byte for byte in range(0xF0) if byte & 0xC != 0xC))
_MP3_HEADER = re.compile(rb"\xff(?=([\xe2\xe3\xf2-\xf7\xfa-\xff])([" + _MP3_THIRD + rb"]))")
"""Of a frame: version and layer, then the place of its bit rate and that of its sample rate (ISO 11172-3)."""
_MP3_RATES = (44_100, 48_000, 32_000)
_MP3_TAG = re.compile(rb"[XI](?=(?:ing|nfo)...([\x01-\xff])(....))", re.DOTALL)
"""What the first frame of many a file says of all, with flags and how many there are: decoders believe it."""
_MP3_TAGS_MAX = 100
_MP3_TAG_OFFSETS = (13, 15, 21, 23, 36, 38)
"""Bytes from a frame's header to its tag: by version and channels, without and with a checksum."""
_WAV_EXTENSIBLE = 0xFFFE
"""What the samples are then stands in an extension."""


def is_sound(file: bytes) -> bool:
    """Whether it is a WAV, FLAC or MP3, told as libmtmd tells (mtmd-helper.cpp)."""
    if len(file) < 12:
        return False
    wav = file[:4] == b"RIFF" and file[8:12] == b"WAVE"
    return wav or file[:4] == b"fLaC" or file[:3] == b"ID3" or (file[0] == 0xFF and file[1] & 0xE0 == 0xE0)


def sound_seconds(file: bytes) -> float:
    """At least as long as it is. 0 where its header makes no sense."""
    if file[:4] == b"RIFF":
        return _wav_seconds(file)
    start = _behind_tags(file)
    if file[start : start + 4] == b"OggS":
        return 0  # may hold a FLAC too
    return _flac_seconds(file[start:]) if file[start : start + 4] == b"fLaC" else _mp3_seconds(file)


def _behind_tags(file: bytes) -> int:
    """Where the sound begins: a decoder of FLAC looks for it behind tags as well (ID3v2, section 3.1)."""
    start = 0
    while file[start : start + 3] == b"ID3" and len(file) >= start + 10:
        size = 0
        for byte in file[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size + (10 if file[start + 5] & 0x10 else 0)
    return start


def _wav_seconds(file: bytes) -> float:
    place, seconds = 12, 0.0
    while place + 24 <= len(file):
        size = int.from_bytes(file[place + 4 : place + 8], "little")
        if file[place : place + 4] == b"fmt ":
            kind, channels, rate, _byte_rate, frame_bytes, bits = (
                int.from_bytes(file[place + 8 + start : place + 8 + stop], "little")
                for start, stop in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
            )
            if kind == _WAV_EXTENSIBLE:
                kind = int.from_bytes(file[place + 32 : place + 34], "little")
            if bits % 8 == 0:
                frame_bytes = bits * channels // 8  # as decoders count, whatever the header's own number says
            if not rate or not frame_bytes:
                return 0
            # PCM and floats; the rest has 4 bits for a sample or more.
            frames = len(file) / frame_bytes if kind in {1, 3} else 2 * len(file)
            seconds = max(seconds, frames / rate)
        place += 8 + size + size % 2
    return seconds


def _flac_seconds(file: bytes) -> float:
    """Of the STREAMINFO block, which comes first (RFC 9639, section 8.2)."""
    packed = int.from_bytes(file[18:26])
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate if rate and len(file) >= 42 else 0


def _mp3_seconds(file: bytes) -> float:
    """Of all that may be frames: each may have another bit rate, so the first tells nothing of the rest."""
    seconds = 0.0
    for second, third in (match.groups() for match in _MP3_HEADER.finditer(file)):
        seconds += _frame_seconds(second[0], third[0] >> 2 & 3)
        if seconds > limits.sounds_seconds_max:
            break  # too long, however much
    tags = list(islice(_MP3_TAG.finditer(file), _MP3_TAGS_MAX + 1))
    if len(tags) > _MP3_TAGS_MAX:
        return inf  # not by chance
    return max([seconds, *(_tag_seconds(file, tag) for tag in tags)])


def _tag_seconds(file: bytes, tag: re.Match[bytes]) -> float:
    """As long as a tag says, where it stands in a frame."""
    if not tag[1][0] & 1:
        return 0
    headers = (_MP3_HEADER.match(file, tag.start() - offset) for offset in _MP3_TAG_OFFSETS if tag.start() >= offset)
    frames = (_frame_seconds(found[1][0], found[2][0] >> 2 & 3) for found in headers if found)
    return int.from_bytes(tag[2]) * max(frames, default=0.0)


def _frame_seconds(second: int, rate: int) -> float:
    version, layer = second >> 3 & 3, second >> 1 & 3  # 3, 2 and 0 are MPEG 1, 2 and 2.5; 3, 2 and 1 layers I to III
    samples = 384 if layer == 3 else 576 if layer == 1 and version != 3 else 1152
    return samples * {3: 1, 2: 2, 0: 4}[version] / _MP3_RATES[rate]
