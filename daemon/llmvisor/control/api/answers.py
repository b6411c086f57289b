"""What every path answers with."""

from __future__ import annotations

import msgspec


class ErrorBody(msgspec.Struct, omit_defaults=False):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(msgspec.Struct):
    """Every error, on every path."""

    error: ErrorBody


class ListAnswer(msgspec.Struct):
    """What list calls answer; `data` holds the objects."""

    data: list[msgspec.Raw]
    object: str = "list"
    next_cursor: str | None = None
    """`cursor` of the next page; None on the last."""
