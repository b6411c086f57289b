"""Bytes of a body → a typed Struct, and the one way in which a body can be wrong told to a person."""

from __future__ import annotations

import re
from typing import Generic, TypeVar

import msgspec

from llmvisor.errors import InvalidJson, InvalidRequest

T = TypeVar("T")

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_GOT = re.compile(r", got `[^`]+`$")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]")
_FOUND_CHARS_MAX = 60
_FOUND_BITS_MAX = 128
_ABSENT = object()


class BodyDecoder(Generic[T]):
    """Decodes JSON into `type`, whose bounds stand in its annotations."""

    def __init__(self, type: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(type)

    def decode(self, body: bytes) -> T:
        """Raises `InvalidJson` for what is no JSON, `InvalidRequest` with the field's path for a wrong value."""
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _invalid(str(error), body) from None
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise InvalidJson(f"the body is not valid JSON: {error}") from None
        except RecursionError:
            raise InvalidJson("the body is nested too deeply") from None


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever its size."""
    if isinstance(value, list):
        return f"an array of {len(value)}"  # pyright: ignore[reportUnknownArgumentType]  # any JSON
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > _FOUND_BITS_MAX:
        return "a far larger number"  # Python refuses to print thousands of digits
    text = msgspec.json.encode(value).decode()
    if len(text) <= _FOUND_CHARS_MAX:
        return text
    return f"a string of {len(value)} characters" if isinstance(value, str) else f"{text[:_FOUND_CHARS_MAX]}…"


def _invalid(message: str, body: bytes) -> InvalidRequest:
    """msgspec's message in our form: what is allowed, what was found, and where."""
    match = _PLACE.match(message)
    assert match is not None, "the pattern matches every text"
    what, path = match["what"], match["path"] or ""
    if missing := _MISSING.match(what):
        param = f"{path}.{missing['field']}".lstrip(".")
        return InvalidRequest(f"{param} is required", param=param)
    param = path.replace("[...]", "").lstrip(".") or None  # `[...]` is an entry whose key is not told
    expected = _GOT.sub("", what).replace("Expected", "expected", 1).replace("`", "")
    found = _value_at(body, path)
    tail = "" if found is _ABSENT else f", found {shown(found)}"
    return InvalidRequest(f"{param or 'the body'}: {expected}{tail}", param=param)


def _value_at(body: bytes, path: str) -> object:
    """What stands at a msgspec path such as `.messages[0].content`; `_ABSENT` where that cannot be told."""
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _ABSENT  # a number out of range somewhere
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            return _ABSENT  # `[...]`: an entry of an object, whose key msgspec does not tell
        position = step.end()
        if isinstance(value, dict) and step["name"] in value:
            value = value[step["name"]]  # pyright: ignore[reportUnknownVariableType]  # any JSON
        elif isinstance(value, list) and step["index"]:
            value = value[int(step["index"])]  # pyright: ignore[reportUnknownVariableType]  # any JSON
        else:
            return _ABSENT
    return value  # pyright: ignore[reportUnknownVariableType]  # any JSON
