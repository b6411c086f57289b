"""What a server's answer means for a file of which some bytes are wanted. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FailureKind

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})", re.ASCII)
_PASSING = frozenset({408, 409, 423, 425, 429, 500, 502, 503, 504})
"""Statuses that another try may not meet again."""
BUSY = frozenset({429, 503})
"""Of these: the server wants fewer requests."""
_KINDS: dict[int, tuple[FailureKind, str]] = {
    401: ("forbidden", "log in: set HF_TOKEN, or what the source asks for"),
    403: ("forbidden", "ask for access at the source, or log in with an account that has it"),
    404: ("not_found", "check the name; `llmctl search` finds what there is"),
    407: ("forbidden", "the proxy wants a login: check https_proxy"),
    410: ("not_found", "it was removed; `llmctl search` finds what there is"),
}


class Interrupted(Exception):
    """What may go well the next time."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.busy = busy


class ContentRange(NamedTuple):
    """What bytes an answer holds."""

    start: int
    end: int
    """Exclusive."""
    size: int | None
    """Of the whole file; None where it is not said."""


def content_range(headers: Mapping[str, str]) -> ContentRange:
    """Raises `Interrupted` for one that cannot be: a damaged answer, from a proxy most often."""
    text = headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise Interrupted(f"it sent a Content-Range that is none: {text[:100]!r}")
    start, end = int(found[1]), int(found[2]) + 1
    size = None if found[3] == "*" else int(found[3])
    if end <= start or (size is not None and end > size):
        raise Interrupted(f"it sent a Content-Range that cannot be: {text[:100]!r}")
    return ContentRange(start, end, size)


def unsatisfied_size(headers: Mapping[str, str]) -> int | None:
    """The file's size, as an answer 416 says it."""
    found = _UNSATISFIED.fullmatch(headers.get("Content-Range", "").strip())
    return int(found[1]) if found else None


def validator(headers: Mapping[str, str]) -> str | None:
    """What changes with the file on this server."""
    return headers.get("ETag") or headers.get("Last-Modified")


def refusal(status: int, headers: Mapping[str, str], what: str, now: datetime) -> FetchProblem | Interrupted:
    """The error of an answer that has no file in it."""
    if status in _PASSING or status >= 500:
        after = retry_after_seconds(headers, now)
        return Interrupted(f"it answered with status {status}", retry_after_seconds=after, busy=status in BUSY)
    kind, hint = _KINDS.get(status, ("invalid", "check the source's address, and whether a proxy stands between"))
    return FetchProblem(kind, f"{what}: the server answered with status {status}", hint=hint)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """What `Retry-After` says, as seconds or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return None
