"""Durations as Ollama's `keep_alive` writes them. Pure."""

from __future__ import annotations

import re

from llmvisor import limits
from llmvisor.errors import InvalidRequest

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(rf"(?P<sign>[-+]?)(?P<parts>(?:{_PART})+)", re.ASCII)
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?", re.ASCII)
_TEXT_CHARS_MAX = 64


def keep_alive_seconds(value: float | str | None, param: str = "keep_alive") -> float | None:
    """Seconds of `300`, `"300"`, `"5m"`, `"1h30m"`, `0` or `-1`; negative = for ever. None stays None.

    Raises `InvalidRequest`.
    """
    if value is None:
        return None
    seconds = _parse(value) if isinstance(value, str) else float(value)
    if seconds is None:
        raise InvalidRequest(f'{param}: expected seconds or a duration such as "5m", found {value!r:.60}', param=param)
    if abs(seconds) > limits.keep_alive_seconds_max:
        raise InvalidRequest(f"{param}: expected at most {limits.keep_alive_seconds_max:.0f} s", param=param)
    return seconds


def _parse(text: str) -> float | None:
    if len(text) > _TEXT_CHARS_MAX:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(_PART, match["parts"]))
    return -seconds if match["sign"] == "-" else seconds
