"""Values of a query string, checked. Pure."""

from __future__ import annotations

from typing import TypeVar

from llmvisor.errors import InvalidRequest
from llmvisor.http.decode import shown

T = TypeVar("T", bound=str)
_DIGITS_MAX = 9


def one_of(value: str | None, allowed: tuple[T, ...], param: str) -> T | None:
    """A word of a list; None where there is none. Raises `InvalidRequest`."""
    if value is None:
        return None
    for word in allowed:
        if value == word:
            return word
    raise InvalidRequest(f"{param}: expected one of {', '.join(allowed)}, found {shown(value)}", param=param)


def count(value: str | None, param: str, most: int, *, default: int | None = None) -> int:
    """A whole number from 1 to `most`; `default`, else `most`, where there is none. Raises `InvalidRequest`."""
    if value is None:
        return most if default is None else default
    if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX and 1 <= int(value) <= most):
        raise InvalidRequest(f"{param}: expected 1 to {most}, found {shown(value)}", param=param)
    return int(value)
