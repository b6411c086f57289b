"""Moments as people read them, on their own clock."""

from __future__ import annotations

from datetime import datetime

from llmctl.terminal import printable


def local_time(moment: str) -> str:
    """An ISO 8601 moment on the person's own clock; as it is where it is none."""
    parsed = _parsed(moment)
    return printable(moment) if parsed is None else parsed.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock_time(moment: str) -> str:
    """`14:03:07.123` on the person's own clock."""
    parsed = _parsed(moment)
    return printable(moment) if parsed is None else parsed.astimezone().strftime("%H:%M:%S.%f")[:-3]


def seconds_between(began: str | None, ended: str | None) -> float | None:
    """None where one of the two is not known."""
    first, last = _parsed(began or ""), _parsed(ended or "")
    if first is None or last is None:
        return None
    try:
        return (last - first).total_seconds()
    except TypeError:
        return None


def _parsed(moment: str) -> datetime | None:
    try:
        return datetime.fromisoformat(moment)
    except ValueError:
        return None
