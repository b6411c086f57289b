"""The text of a `.env` file into variables. Pure.

Lines are `NAME=value`, with `export ` before and a comment behind allowed. Single quotes keep everything as it is, in
double quotes `\\n` and `\\t` mean what they do in C and a backslash keeps any other sign. Nothing is expanded, no value
goes over lines.
"""

from __future__ import annotations

import re

import msgspec

_NAME = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Line(msgspec.Struct, frozen=True):
    """One variable; `line` counts from 1."""

    name: str
    value: str
    line: int


def read_dotenv(text: str) -> tuple[list[Line], list[tuple[int, str]]]:
    """The variables, later lines last, and what is wrong: lines and reasons. No value stands in a reason."""
    found: list[Line] = []
    problems: list[tuple[int, str]] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _NAME.fullmatch(line)
        value = None if match is None else _value(match[2])
        if match is None or value is None:
            problems.append((number, "no NAME=value line" if match is None else f"{match[1]}: a quote does not end"))
        else:
            found.append(Line(match[1], value, number))
    return found, problems


def _value(text: str) -> str | None:
    if text.startswith("'"):
        match = _SINGLE.fullmatch(text)
        return None if match is None else match[1]
    if text.startswith('"'):
        match = _DOUBLE.fullmatch(text)
        return None if match is None else re.sub(r"\\(.)", lambda each: _ESCAPES.get(each[1], each[1]), match[1])
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
