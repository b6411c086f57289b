"""What one line of the log says: fields become text, secrets become `****`, and no message can forge a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import cast

import msgspec

from llmvisor import limits
from llmvisor.control.api import LogLevel, LogRecord

MASK = "****"

_SECRET_NAME = re.compile(r"key|token|secret|password|authorization", re.IGNORECASE)
# What looks like a credential wherever it stands: a bearer header, or a key in the shape that most services use.
_SECRET_TEXT = re.compile(r"(?i)(\bbearer\s+)[^\s\"',]{8,}|\b(sk-|hf_|llmv-)[A-Za-z0-9_\-]{12,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NEEDS_QUOTES = re.compile(r"[\s=\"\\]|^$")
_NAMED_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def make_record(
    *,
    time: datetime,
    level: LogLevel,
    module: str,
    message: str,
    values: Mapping[str, object],
) -> LogRecord:
    """A record with every value as text, cut to `log_line_bytes_max`, and secrets masked.

    `model` and `request_id` have places of their own.
    """
    texts = {name: _value_text(name, value) for name, value in values.items() if value is not None}
    model = texts.pop("model", None)
    request_id = texts.pop("request_id", None)
    return LogRecord(
        time=timestamp(time),
        level=level,
        module=module,
        message=_cut(_mask_text(message)),
        model=model,
        request_id=request_id,
        fields=texts,
    )


def timestamp(time: datetime) -> str:
    """ISO 8601 to the millisecond, `Z` for UTC."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def text_line(record: LogRecord) -> bytes:
    """`timestamp - module - level - message key=value …`; the lines of an exception follow, indented."""
    parts = [f"{record.time} - {_escape(record.module)} - {record.level} - {_escape(record.message)}"]
    if record.model is not None:
        parts.append(f"model={_quoted(record.model)}")
    if record.request_id is not None:
        parts.append(f"request_id={_quoted(record.request_id)}")
    parts += [f"{_escape(name)}={_quoted(value)}" for name, value in record.fields.items() if name != "exception"]
    lines = [" ".join(parts)]
    # Indented, so that no text of an exception can pass for a line of its own.
    lines += [f"    {_escape(line)}" for line in record.fields.get("exception", "").splitlines()]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def json_line(record: LogRecord) -> bytes:
    """One JSON object: the record's own names, as `GET /logs` gives them."""
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeError:  # a lone surrogate, which JSON cannot carry
        safe = {name: _escape(value) for name, value in record.fields.items()}
        clean = msgspec.structs.replace(record, message=_escape(record.message), fields=safe)
        return msgspec.json.encode(clean) + b"\n"


def _value_text(name: str, value: object) -> str:
    if isinstance(value, int | float):
        return str(value)  # a number is a count (`tokens=12`), never a credential
    if isinstance(value, Mapping):
        items = ((str(key), item) for key, item in cast("Mapping[object, object]", value).items())
        return _cut("{" + ", ".join(f"{key}: {_value_text(key, item)}" for key, item in items) + "}")
    return MASK if _is_secret(name) else _cut(_mask_text(str(value)))


@lru_cache(maxsize=limits.log_field_names_kept_max)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _mask_text(text: str) -> str:
    return _SECRET_TEXT.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def _cut(text: str) -> str:
    if len(text) <= limits.log_line_bytes_max:
        return text
    return f"{text[: limits.log_line_bytes_max]}… ({len(text)} characters)"


def _quoted(text: str) -> str:
    escaped = _escape(text)
    if not _NEEDS_QUOTES.search(text):
        return escaped
    return '"' + escaped.replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    return _CONTROL.sub(_escape_one, text)


def _escape_one(found: re.Match[str]) -> str:
    character = found[0]
    if named := _NAMED_ESCAPES.get(character):
        return named
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
