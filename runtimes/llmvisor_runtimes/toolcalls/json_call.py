"""Calls that are JSON: `{"name": …, "arguments": {…}}`, alone or in a list."""

from __future__ import annotations

import json
import re
from typing import Any

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

NAME_KEYS = frozenset({"name", "tool_name", "function"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
OTHER_KEYS = frozenset({"id", "type", "tool_call_id"})
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


def read_calls(reader: Reader, found: Found, *, known: bool) -> Steps[None]:
    """A call or a list of calls. With `known`, only calls of tools that there are. Raises `Malformed`."""
    yield from reader.skip_space()
    if (yield from reader.accept("[")):
        while True:
            yield from read_call(reader, found, known=known)
            if not (yield from reader.close(",")):
                break
        if not (yield from reader.close("]")):
            raise Malformed
        reader.commit()
    else:
        yield from read_call(reader, found, known=known)


def read_several(reader: Reader, found: Found, *, known: bool) -> Steps[None]:
    """Calls one after another, white space or a semicolon between. Raises `Malformed`."""
    yield from read_calls(reader, found, known=known)
    while True:
        yield from reader.skip_space()
        yield from reader.accept(";")
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            reader.at = 0
            return
        yield from read_calls(reader, found, known=True)


def read_call(reader: Reader, found: Found, *, known: bool) -> Steps[None]:
    """One call: an object with a name and arguments, in whichever order. Raises `Malformed`."""
    yield from reader.skip_space()
    yield from reader.expect("{")
    call = _Call(reader, found, known=known)
    yield from call.members()
    call.end()
    reader.commit()


def read_arguments(reader: Reader, found: Found) -> Steps[None]:
    """A JSON object, given out as it comes; what was read before it is committed."""
    depth = 0
    in_string = False
    while True:
        reader.at, depth, in_string = _scan(reader.text, reader.at, depth, in_string)
        found.add_arguments(reader.text[: reader.at])
        reader.commit()
        if not depth and not in_string:
            return
        if not (yield from reader.longer()):
            found.add_arguments(reader.text)
            reader.at = len(reader.text)
            reader.commit()
            return


def _scan(text: str, at: int, depth: int, in_string: bool) -> tuple[int, int, bool]:
    """How far a value goes in what has come: where it stands then, how deep, and whether inside a string."""
    while True:
        match = (_INSIDE if in_string else _OUTSIDE).search(text, at)
        if match is None:
            return len(text), depth, in_string
        at = match.end()
        character = match.group()
        if character == "\\":
            if at == len(text):
                return at - 1, depth, in_string
            at += 1
        elif character == '"':
            in_string = not in_string
        elif character in "{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return at, 0, False


class _Call:
    """One call while it is read."""

    def __init__(self, reader: Reader, found: Found, *, known: bool) -> None:
        self._reader = reader
        self._found = found
        self._known = known
        self._name: str | None = None
        self._arguments: str | None = None
        self._begun = False
        self._nested = False

    def members(self) -> Steps[None]:
        """The members of the object, its end included."""
        reader = self._reader
        if (yield from self._ends()):
            return
        while True:
            yield from reader.skip_space()
            key = decoded_string((yield from reader.string()))
            if self._known and key not in NAME_KEYS | ARGUMENT_KEYS | OTHER_KEYS:
                raise Malformed  # some other object, which need not be held back any longer
            yield from reader.skip_space()
            yield from reader.expect(":")
            yield from reader.skip_space()
            yield from self._member(key)
            if (yield from self._ends()):
                return
            yield from reader.skip_space()
            yield from reader.expect(",")

    def _ends(self) -> Steps[bool]:
        """Whether the object ends here. A call that has begun is not undone by a text that was cut."""
        if self._begun:
            return (yield from self._reader.close("}"))
        yield from self._reader.skip_space()
        return bool((yield from self._reader.accept("}")))

    def end(self) -> None:
        """The object has ended."""
        if self._begun:
            return
        if self._arguments is None and self._known:
            raise Malformed
        self._begin()
        self._found.add_arguments(self._arguments or "{}")

    def _member(self, key: str) -> Steps[None]:
        reader = self._reader
        next_character = yield from reader.peek()
        if key in NAME_KEYS and next_character == '"' and self._name is None:
            self._name = self._checked(decoded_string((yield from reader.string())))
        elif key == "function" and next_character == "{" and self._name is None and not self._nested:
            self._nested = True
            yield from reader.expect("{")
            yield from self.members()
        elif key in ARGUMENT_KEYS and self._arguments is None and not self._begun:
            yield from self._read_arguments(next_character)
        else:
            yield from _value(reader)

    def _read_arguments(self, next_character: str) -> Steps[None]:
        if self._name is not None and next_character == "{":
            self._begin()
            yield from read_arguments(self._reader, self._found)
            return
        value = yield from _value(self._reader)
        if value.startswith('"'):
            value = decoded_string(value)
        if value.strip() in {"", "null"}:
            value = "{}"
        if not is_object(value):
            raise Malformed
        self._arguments = value

    def _checked(self, name: str) -> str:
        if not name or len(name) > limits.tool_name_chars_max or (self._known and name not in self._found.names):
            raise Malformed
        return name

    def _begin(self) -> None:
        if self._name is None:
            raise Malformed
        self._begun = True
        self._found.begin_call(self._name)
        self._reader.commit()


def _value(reader: Reader) -> Steps[str]:
    """Any JSON value, as it is written."""
    first = yield from reader.peek()
    if first == '"':
        return (yield from reader.string())
    if first not in ("{", "["):
        word = yield from reader.word()
        if not word:
            raise Malformed
        return word
    start = reader.at
    depth, in_string = 0, False
    while True:
        reader.at, depth, in_string = _scan(reader.text, reader.at, depth, in_string)
        if not depth and not in_string:
            return reader.text[start : reader.at]
        if not (yield from reader.longer()):
            raise Malformed


def decoded_string(written: str) -> str:
    """The text of a JSON string. Raises `Malformed`."""
    try:
        return str(json.loads(written, strict=False))
    except ValueError as error:
        raise Malformed from error


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)
