"""Which bytes of a file are there. Pure: sorted, disjoint, half-open ranges of offsets."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
"""From this offset, up to and without that one."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, in order. Empty ones are dropped."""
    whole: list[Range] = []
    for start, end in sorted(ranges):
        if end <= start:
            continue
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(whole[-1][1], end))
        else:
            whole.append((start, end))
    return whole


def clipped(ranges: Iterable[Range], size: int) -> list[Range]:
    """Those bytes that lie before `size`."""
    return merged((max(start, 0), min(end, size)) for start, end in ranges)


def count(ranges: Iterable[Range]) -> int:
    """Bytes in ranges that are merged."""
    return sum(end - start for start, end in ranges)


def next_missing(ranges: Iterable[Range], *, size: int | None, bytes_max: int) -> Range | None:
    """The first bytes that are in none of the ranges, at most so many of them; `size` None is a file without an end."""
    at = 0
    end_max = size
    for start, end in merged(ranges):
        if start > at:
            end_max = start
            break
        at = end
    if size is not None and at >= size:
        return None
    end = at + bytes_max
    return at, end if end_max is None else min(end, end_max)
