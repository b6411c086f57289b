"""One value into the type of its key, or what would have been allowed there. Pure."""

from __future__ import annotations

import math
import re
from typing import cast

import msgspec
from msgspec import inspect

from llmvisor import limits
from llmvisor.config.document import scalar_value
from llmvisor.config.tree import parse_memory

Json = msgspec.json.Encoder(enc_hook=str)


class WrongValue(Exception):
    """A value that its key does not take; `allowed` says what it takes."""

    def __init__(self, allowed: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed


class Given(msgspec.Struct, frozen=True):
    """A value as it was written."""

    value: object
    """Builtin: bool, int, float, str, None, list, dict."""
    text: str | None = None
    """Of a scalar: what stood there, for keys where digits are no number (an octal mode)."""
    textual: bool = False
    """From the environment, where everything is text and a list is divided by commas."""


_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_SYNONYMS = {"warn": "warning", "fatal": "critical"}


def convert(given: Given, kind: inspect.Type) -> object:
    """The value as its key's type. Raises `WrongValue`."""
    bare, notes = _notes(kind)
    if isinstance(bare, inspect.UnionType):
        return _optional(given, bare)
    if isinstance(given.value, str) and given.value.lower() in notes.words:
        return notes.words[given.value.lower()]
    try:
        return _convert_bare(given, bare, notes.form)
    except WrongValue as error:
        raise WrongValue(allowed(kind)) from error


class _Notes(msgspec.Struct, frozen=True):
    """What the tree's types say in `extra`."""

    words: dict[str, int] = {}
    form: str = ""
    allowed: str | None = None


def _notes(kind: inspect.Type) -> tuple[inspect.Type, _Notes]:
    if isinstance(kind, inspect.Metadata):
        return kind.type, msgspec.convert(cast("object", kind.extra or {}), _Notes)
    return kind, _Notes()


def _optional(given: Given, kind: inspect.UnionType) -> object:
    rest = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
    assert len(rest) == 1, "the tree has no other unions"
    if given.value is None or (given.textual and given.value in ("null", "none", "~")):
        return None
    try:
        return convert(given, rest[0])
    except WrongValue as error:
        raise WrongValue(allowed(kind)) from error


def _convert_bare(given: Given, kind: inspect.Type, form: str) -> object:  # noqa: PLR0911 - one line for each kind
    if isinstance(kind, inspect.BoolType):
        return _boolean(given)
    if isinstance(kind, inspect.IntType):
        return _bounded(_number(given, whole=True), kind)
    if isinstance(kind, inspect.FloatType):
        return float(_bounded(_number(given, whole=False), kind))
    if isinstance(kind, inspect.LiteralType):
        return _choice(given, kind)
    if isinstance(kind, inspect.StrType):
        return _string(given, kind, form)
    if isinstance(kind, inspect.ListType):
        return [convert(item, kind.item_type) for item in _items(given)]
    if isinstance(kind, inspect.TupleType):
        items = _items(given)
        if len(items) != len(kind.item_types):
            raise WrongValue("")
        return tuple(convert(item, each) for item, each in zip(items, kind.item_types, strict=True))
    # `object`, of which msgspec makes a custom type.
    assert isinstance(kind, inspect.CustomType), f"the tree has no {kind}"
    return _anything(given)


def _boolean(given: Given) -> bool:
    if isinstance(given.value, bool):
        return given.value
    word = given.value.lower() if isinstance(given.value, str) else ""
    if word in _TRUE - {"1"} or (given.textual and word == "1"):
        return True
    if word in _FALSE - {"0"} or (given.textual and word == "0"):
        return False
    raise WrongValue("")


def _number(given: Given, *, whole: bool) -> int | float:
    value = scalar_value(given.value.strip()) if given.textual and isinstance(given.value, str) else given.value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WrongValue("")
    if whole and isinstance(value, float):
        if not value.is_integer():
            raise WrongValue("")
        return int(value)
    return value


def _bounded(number: float, kind: inspect.IntType | inspect.FloatType) -> int | float:
    too_small = (kind.ge is not None and number < kind.ge) or (kind.gt is not None and number <= kind.gt)
    if too_small or (kind.le is not None and number > kind.le):
        raise WrongValue("")
    return number


def _choice(given: Given, kind: inspect.LiteralType) -> object:
    word = given.value.lower() if isinstance(given.value, str) else given.value
    if isinstance(word, str) and word not in kind.values:
        word = _SYNONYMS.get(word, word)
    if isinstance(word, bool) or word not in kind.values:
        raise WrongValue("")
    return word


def _string(given: Given, kind: inspect.StrType, form: str) -> str:
    # A key of digits alone is a text all the same (a model called `7`), but a list or mapping is none.
    numeric = isinstance(given.value, (bool, int, float)) and bool(form)
    value = (given.text or _scalar_text(given.value)) if numeric else given.value
    if not isinstance(value, str) or not _is_clean(value):
        raise WrongValue("")
    if form == "octal":
        return _octal(value)
    if form == "memory" and parse_memory(value) is None:
        raise WrongValue("")
    length = len(value)
    too_long = kind.max_length is not None and length > kind.max_length
    if too_long or (kind.min_length is not None and length < kind.min_length):
        raise WrongValue("")
    if kind.pattern is not None and re.fullmatch(kind.pattern, value) is None:
        raise WrongValue("")
    return value


def _scalar_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_clean(text: str) -> bool:
    """No NUL, no half character: neither can be handed to the system, or shown."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _octal(text: str) -> str:
    if re.fullmatch(r"(0o)?[0-7]{1,4}", text) is None:
        raise WrongValue("")
    mode = int(text, 8)
    # Without both of these the daemon's own person could not reach the socket.
    if mode > 0o777 or mode & 0o600 != 0o600:
        raise WrongValue("")
    return f"{mode:04o}"


def _items(given: Given) -> list[Given]:
    if given.textual and isinstance(given.value, str):
        parts = [part.strip() for part in given.value.strip().removeprefix("[").removesuffix("]").split(",")]
        return [Given(part, part, textual=True) for part in parts if part]
    if isinstance(given.value, str):
        return [given]
    if not isinstance(given.value, (list, tuple)):
        raise WrongValue("")
    return [Given(item) for item in cast("list[object]", given.value)]


def _anything(given: Given) -> object:
    value = scalar_value(given.value) if given.textual and isinstance(given.value, str) else given.value
    try:
        encoded = Json.encode(value)
        msgspec.msgpack.encode(value)
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError, TypeError) as error:
        raise WrongValue("") from error
    if len(encoded) > limits.option_bytes_max:
        raise WrongValue("")
    return value


def allowed(kind: inspect.Type) -> str:  # noqa: PLR0911 - one line for each kind
    """What a key takes, in words."""
    kind, notes = _notes(kind)
    if isinstance(kind, inspect.UnionType):
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        return " or ".join([*map(allowed, members), "null"])
    if notes.allowed is not None:
        return notes.allowed
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        return _range(kind) + "".join(f", or `{word}`" for word in notes.words)
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(map(str, kind.values))
    if isinstance(kind, inspect.StrType):
        return "a text" if kind.max_length is None else f"a text of up to {kind.max_length} characters"
    if isinstance(kind, inspect.ListType):
        return f"a list, each {allowed(kind.item_type)}"
    if isinstance(kind, inspect.TupleType):
        return f"a list of {len(kind.item_types)}, each {allowed(kind.item_types[0])}"
    return f"any value of up to {limits.option_bytes_max} bytes"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    low = f"above {_digits(kind.gt)}" if kind.gt is not None else f"from {_digits(kind.ge or 0)}"
    return f"{noun} {low} to {_digits(kind.le)}" if kind.le is not None else f"{noun} {low}"


def _digits(number: float | None) -> str:
    return f"{number:g}" if isinstance(number, float) and abs(number) < 1e6 else str(int(number or 0))


def show(value: object, *, chars_max: int = 60) -> str:
    """A value for people, on one line."""
    if isinstance(value, str):
        value = value.encode("utf-8", "backslashreplace").decode()
    try:
        text = Json.encode(value).decode()
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError, TypeError):
        text = ascii(value)
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
