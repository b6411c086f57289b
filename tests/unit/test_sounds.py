"""How long a sound is, told by its header."""

from __future__ import annotations

import struct

import pytest

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.sounds import is_sound, sound_seconds


def wav(
    kind: int, rate: int, frame_bytes: int, data: int, *, bits: int | None = None, extra: bytes = b"", more: bytes = b""
) -> bytes:
    """One channel. `extra` stands before the format, `more` at its end."""
    bits = 8 * frame_bytes if bits is None else bits
    form = struct.pack("<HHIIHH", kind, 1, rate, rate * frame_bytes & 0xFFFFFFFF, frame_bytes, bits) + more
    head = b"fmt " + struct.pack("<I", len(form)) + form
    return b"RIFF\0\0\0\0WAVE" + extra + head + b"data" + struct.pack("<I", data) + bytes(data)


def extension(kind: int) -> bytes:
    return struct.pack("<HHIH", 22, 0, 0, kind) + bytes(14)


def mp3(header: bytes, frame_bytes: int, frames: int) -> bytes:
    return (header + bytes(frame_bytes - len(header))) * frames


def flac(rate: int, samples: int) -> bytes:
    return b"fLaC\0\0\0\x22" + bytes(10) + (rate << 44 | 15 << 36 | samples).to_bytes(8) + bytes(40)


@pytest.mark.parametrize(
    ("file", "seconds"),
    [
        (wav(1, 16_000, 2, 64_000), 2.0),
        (wav(3, 48_000, 8, 768_000), 2.0),
        (wav(1, 16_000, 2, 64_000, extra=b"LIST\3\0\0\0abc\0"), 2.0),
        (wav(1, 1, 1, 64_000), 64_000.0),
        (wav(1, 8_000, 60_000, 64_000, bits=8), 8.0),
        (wav(0xFFFE, 16_000, 2, 64_000, more=extension(1)), 2.0),
        (flac(44_100, 441_000), 10.0),
        (flac(44_100, (1 << 36) - 1), ((1 << 36) - 1) / 44_100),
        (mp3(b"\xff\xfb\x90\x00", 417, 383), 10.0),
        (b"ID3\4\0\0\0\0\1\0" + bytes(128) + mp3(b"\xff\xfb\x90\x00", 417, 383), 10.0),
        (mp3(b"\xff\xf3\x10\x00", 26, 383), 10.0),
        (mp3(b"\xff\xfb\xe0\x00", 1044, 1) + mp3(b"\xff\xfb\x10\x00", 104, 382), 10.0),
        (mp3(b"\xff\xfd\x90\x00", 522, 383), 10.0),
        (mp3(b"\xff\xff\x90\x00", 312, 1148), 10.0),
        (mp3(b"\xff\xe3\x18\x00", 72, 139), 10.0),
        (mp3(b"\xff\xfb\x90\x00" + bytes(32) + b"Xing\0\0\0\1\0\1\0\0", 417, 1), 65_536 * 1152 / 44_100),
        (mp3(b"\xff\xf2\x10\xc0" + bytes(11) + b"Info\0\0\0\3\0\1\0\0", 417, 1), 65_536 * 576 / 22_050),
        (mp3(b"\xff\xfb\x90\x00" + bytes(32) + b"Xing\0\0\0\2\0\1\0\0", 417, 1), 1152 / 44_100),
        (b"ID3\4\0\0\0\0\0\4" + b"\xff\xfb\x90\x00" + flac(44_100, 441_000), 10.0),
        (b"ID3\4\0\x10\0\0\0\4" + bytes(14) + b"ID3\4\0\0\0\0\0\0" + flac(44_100, 441_000), 10.0),
        (wav(1, 16_000, 2, 0)[:-8] + wav(1, 1, 1, 64_000)[12:], 64_000.0),
    ],
)
def test_length_is_that_of_the_header(file: bytes, seconds: float) -> None:
    """WAV with its samples' size, FLAC with the number it names, MP3 with its frames, whatever the rate of each."""
    assert is_sound(file)
    assert sound_seconds(file) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("kind", [2, 17, 6, 7])
def test_compressed_wav_is_taken_for_as_long_as_it_may_be(kind: int) -> None:
    """Four bits for a sample, whatever its header says of blocks."""
    assert sound_seconds(wav(kind, 8_000, 65_535, 8_000, bits=4)) >= 2.0
    assert sound_seconds(wav(0xFFFE, 8_000, 65_535, 8_000, bits=4, more=extension(kind))) >= 2.0


@pytest.mark.parametrize(
    "file",
    [
        wav(1, 0, 2, 100), wav(1, 16_000, 0, 100), wav(1, 16_000, 2, 100)[:30], b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\xff",
        flac(0, 100), flac(44_100, 0), flac(44_100, 100)[:30], b"ID3\4\0\0\0\0\0\0", b"\xff\xfb" + b"\xf0" * 50,
        b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(50), b"ID3\4\0\0\0\0\0\4\xff\xfb\x90\0OggS" + bytes(50),
    ],
)  # fmt: skip
def test_header_without_sense_has_no_length(file: bytes) -> None:
    """Cut, without a rate, or of no sound at all."""
    assert sound_seconds(file) == 0


@pytest.mark.parametrize("file", [b"", b"RIFF", b"RIFF\0\0\0\0WEBPVP8 ", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_images_are_no_sounds(file: bytes) -> None:
    """RIFF alone is not enough."""
    assert not is_sound(file)


def test_sound_of_frames_without_end_is_not_counted_to_the_end() -> None:
    """What is too long is known after as many frames as make it so."""
    assert sound_seconds(b"\xff\xfb\x10\0" + b"Xing" * 1_000_000) > limits.sounds_seconds_max
    assert limits.sounds_seconds_max < sound_seconds(b"\xff\xfb\x10" * 1_000_000) < limits.sounds_seconds_max + 1
