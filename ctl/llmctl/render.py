"""Values as people read them. Pure."""

from __future__ import annotations


def size(count: int | None) -> str:
    """Bytes in at most five characters: `512`, `145M`, `1.2G`. Units are powers of 1024."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("", "K", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            return f"{value:.1f}{unit}" if unit in {"G", "T"} and value < 99.95 else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError("unreachable: T takes every size")


def long_size(count: int | None) -> str:
    """Bytes with their unit: `512 B`, `145 MiB`."""
    text = size(count)
    return text if not text else f"{text[:-1]} {text[-1]}iB" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float | None) -> str:
    """Two units at most: `0.4s`, `45s`, `4m 12s`, `3h 12m`, `12d 4h`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for big, small, span in (("m", "s", 60), ("h", "m", 3600), ("d", "h", 86400)):
        if whole < span * (60 if span == 60 else 24) or big == "d":
            left = whole % span // (span // (24 if big == "d" else 60))
            return f"{whole // span}{big} {left}{small}" if left else f"{whole // span}{big}"
    raise AssertionError("unreachable: days take every duration")


def milliseconds(value: float) -> str:
    """`34 ms`; from a second on as a duration: `1.2s`."""
    return f"{value:.0f} ms" if value < 1000 else duration(value / 1000)


def countdown(seconds: float | None) -> str:
    """One unit: `45s`, `5m`, `3h`."""
    if seconds is None:
        return ""
    for unit, span in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= span:
            return f"{seconds / span:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def count(value: int | None) -> str:
    """A count of parameters or the like: `135M`, `7.2B`."""
    if value is None:
        return ""
    for unit, one in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if value >= one:
            return f"{value / one:.1f}{unit}" if value < 10 * one else f"{value / one:.0f}{unit}"
    return str(value)


def amount(value: float, unit: str) -> str:
    """Progress in its own unit: bytes as a size, others as they are."""
    return long_size(int(value)) if unit == "bytes" else f"{value:.0f} {unit}"


def times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def part(done: int, total: int, unit: str) -> str:
    """How much of how much; a unit that both have is said once: `25 of 100 MiB`, `900 KiB of 1.2 GiB`."""
    if unit != "bytes":
        return f"{done} of {total} {unit}"
    first, last = long_size(done), long_size(total)
    number, _, same = first.partition(" ")
    return f"{number if last.endswith(f' {same}') else first} of {last}"


def state(name: str) -> str:
    return name.replace("_", " ")
