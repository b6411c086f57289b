"""One expression of a Go template as one of Jinja. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from llmvisor.fetch.go_template import Untranslatable

DEPTH_MAX: Final = 32
DICTIONARIES: Final = frozenset({"Properties", "Arguments"})
"""Fields that are objects with names of their own; `range` goes through them by name."""
_NAMES: Final = {
    **{name: name.lower() for name in ("Role", "Content", "Images", "Function", "Name", "Arguments", "Parameters")},
    **{name: name.lower() for name in ("Description", "Type", "Properties", "Required", "Enum", "Items", "Index")},
    "ID": "id",
    "ToolCallID": "tool_call_id",
    "ToolCalls": "tool_calls",
    "ToolName": "name",
    "Thinking": "reasoning_content",
}
"""Fields of a message, a call and a tool, as templates in Jinja have them."""
_VERB = re.compile(r"%[sdv]")
_COMPARED: Final = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_CONSTANTS: Final = {"true": "true", "false": "false", "nil": "none"}


class Value(NamedTuple):
    """An expression of Jinja, and what is known of it."""

    code: str
    field: str = ""
    """The field's name that it ends with, where it does."""
    text: bool = False
    """It is a text, whatever it comes from."""
    literal: str | None = None
    """The text itself, where it stands in the template."""


class Scope(NamedTuple):
    """What names stand for at one place of a template."""

    root: Mapping[str, str]
    """Fields of `$`."""
    dot: Value | None
    """None where it is the root."""
    variables: Mapping[str, Value]


def expression(words: Sequence[str], scope: Scope) -> Value:
    """A pipeline. Raises `Untranslatable`."""
    reader = _Reader(words, scope)
    value = reader.pipeline(0)
    if reader.left:
        raise Untranslatable(f"{reader.left[0]!r} was not expected")
    return value


def quoted(text: str) -> str:
    """A text as a literal of Jinja."""
    for sign, written in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(sign, written)
    return f"'{text}'"


class _Reader:
    def __init__(self, words: Sequence[str], scope: Scope) -> None:
        self.left = list(words)
        self._scope = scope

    def pipeline(self, depth: int) -> Value:
        """Commands with `|` between them: each is the next one's last argument."""
        if depth > DEPTH_MAX:
            raise Untranslatable("an expression is nested too deep")
        value = self._command(depth, None)
        while self.left[:1] == ["|"]:
            self.left.pop(0)
            value = self._command(depth, value)
        return value

    def _command(self, depth: int, piped: Value | None) -> Value:
        if not self.left:
            raise Untranslatable("an expression is missing")
        word = self.left[0]
        if word.isidentifier() and word not in _CONSTANTS:
            self.left.pop(0)
            arguments: list[Value] = []
            while self.left and self.left[0] != "|" and not self.left[0].startswith(")"):
                arguments.append(self._operand(depth))
            return _called(word, [*arguments, *([piped] if piped else [])])
        if piped is not None:
            raise Untranslatable(f"{word!r} is no function")
        return self._operand(depth)

    def _operand(self, depth: int) -> Value:
        word = self.left.pop(0)
        if word == "(":
            value = self.pipeline(depth + 1)
            closing = self.left.pop(0) if self.left else ""
            if not closing.startswith(")"):
                raise Untranslatable("a bracket does not close")
            return _fields(value, closing.split(".")[1:])
        if word[0] in '"`':
            literal = _literal(word)
            return Value(quoted(literal), text=True, literal=literal)
        if word[0] == "$":
            name, *fields = word.split(".")
            return self._root(fields) if name == "$" else _fields(self._variable(name), fields)
        if word[0] == ".":
            fields = [name for name in word.split(".") if name]
            return self._root(fields) if self._scope.dot is None else _fields(self._scope.dot, fields)
        if word in _CONSTANTS or word[0] in "-0123456789":
            return Value(_CONSTANTS.get(word, word))
        if word.isidentifier():
            return _called(word, [])
        raise Untranslatable(f"{word!r} was not expected")

    def _root(self, fields: Sequence[str]) -> Value:
        if not fields or fields[0] not in self._scope.root:
            raise Untranslatable(f"${'.' if fields else ''}{'.'.join(fields)} is not known")
        first = fields[0]
        return _fields(
            Value(self._scope.root[first], first, text=first in {"System", "Prompt", "Response"}), fields[1:]
        )

    def _variable(self, name: str) -> Value:
        if name not in self._scope.variables:
            raise Untranslatable(f"{name} is not known")
        return self._scope.variables[name]


def _fields(value: Value, names: Sequence[str]) -> Value:
    for name in names:
        if name not in _NAMES:
            raise Untranslatable(f"the field {name} is not known")
        value = Value(f"{value.code}['{_NAMES[name]}']", name)
    return value


def _called(name: str, given: Sequence[Value]) -> Value:
    codes = [value.code for value in given]
    makers: dict[str, tuple[range, Callable[[], str]]] = {
        "eq": (range(2, 9), lambda: " or ".join(f"{codes[0]} == {other}" for other in codes[1:])),
        "not": (range(1, 2), lambda: f"not {codes[0]}"),
        "and": (range(1, 17), lambda: " and ".join(codes)),
        "or": (range(1, 17), lambda: " or ".join(codes)),
        "len": (range(1, 2), lambda: f"({codes[0]} or [])|length"),
        "slice": (range(1, 4), lambda: f"({codes[0]} or [])[{':'.join([*codes[1:], '', ''][:2])}]"),
        "index": (range(2, 5), lambda: "".join([codes[0], *(f"[{code}]" for code in codes[1:])])),
        "json": (range(1, 2), lambda: f"{codes[0]}|tojson(separators=(',', ':'))"),
        "printf": (range(1, 17), lambda: _formatted(given)),
        "currentDate": (range(1), lambda: "strftime_now('%Y-%m-%d')"),
        **{word: (range(2, 3), _comparing(sign, codes)) for word, sign in _COMPARED.items()},
    }
    if name not in makers:
        raise Untranslatable(f"the function {name} is not known")
    counts, make = makers[name]
    if len(given) not in counts:
        raise Untranslatable(f"{name} with {len(given)} arguments")
    return Value(f"({make()})", text=name in {"json", "printf", "currentDate"})


def _formatted(given: Sequence[Value]) -> str:
    """Texts with values between them, for `%s`, `%d` and `%v` without widths."""
    pieces = _VERB.split(given[0].literal or "")
    if given[0].literal is None or len(pieces) != len(given) or "%" in "".join(pieces):
        raise Untranslatable("a printf is not known")
    parts = [quoted(pieces[0])]
    for value, piece in zip(given[1:], pieces[1:], strict=True):
        parts += [value.code, quoted(piece)]
    return " ~ ".join(parts)


def _comparing(sign: str, codes: Sequence[str]) -> Callable[[], str]:
    return lambda: f" {sign} ".join(codes)


def _literal(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    try:
        return str(json.loads(word, strict=False))
    except ValueError as error:
        raise Untranslatable(f"{word[:40]} is no text") from error
