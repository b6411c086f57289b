"""What a PNG unpacks to, told before anybody unpacks it."""

from __future__ import annotations

import zlib

import pytest
from tests.support.tiny_mmproj import png, png_of

from llmvisor_runtimes.llamacpp.images import unpacks_wrong


@pytest.mark.parametrize(
    "file",
    [
        png(1),
        png(2, width=1, height=1),
        png_of(300, 200, bytes((1 + 300 * 8) * 200), depth=16, color=6),
        png_of(1, 300, bytes((1 + 8) * 300), depth=16, color=6, interlace=1),
        png(3)[:200],
        b"GIF89a" + bytes(50),
        b"",
    ],
)
def test_image_within_its_size_is_left_to_the_decoder(file: bytes) -> None:
    """The largest pixels there are, one alone, cut, and what is no PNG at all."""
    assert not unpacks_wrong(file)


def test_more_than_all_pixels_take_is_told() -> None:
    """Thousand times the file, or just over the bound; in one chunk or in many."""
    whole = png_of(8, 8, bytes(50_000_000))
    assert len(whole) < 100_000
    assert unpacks_wrong(whole)
    assert unpacks_wrong(png_of(8, 8, bytes(8 * 64 + 4 * 8 + 1024 + 1)))
    packed = zlib.compress(bytes(5_000_000))
    chunks = b"".join(
        len(piece).to_bytes(4) + b"IDAT" + piece + bytes(4)
        for piece in (packed[at : at + 100] for at in range(0, len(packed), 100))
    )
    assert unpacks_wrong(png(1, width=8, height=8)[:33] + chunks)


def test_data_that_are_none_are_told() -> None:
    """Another decoder may read on where this one stops, and unpack more than was counted."""
    file = png(1)
    assert unpacks_wrong(file[:43] + b"\xff" * 20 + file[63:])
