"""Go's `text/template`, as far as it is parsed here: actions become nodes with their words. Pure.

The grammar follows the documentation of text/template; `define`, `template` and `block` are left out, which no chat
template needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

SOURCE_CHARS_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 48

_SPACE: Final = " \t\r\n"
_COMMENT = re.compile(r"-?\s*/\*.*?\*/\s*-?\}\}", re.DOTALL)
_WORD = re.compile(
    r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|\$\w*(?:\.\w+)*|\)(?:\.\w+)*|(?:\.\w+)+|\.|-?\d+(?:\.\d+)?|\w+|:=|[=(|,]', re.ASCII
)


class Untranslatable(Exception):
    """A template that is none, or uses what is not known here; says which."""


class Text(NamedTuple):
    text: str


class Action(NamedTuple):
    """An expression that is written out, or an assignment."""

    words: tuple[str, ...]


class Branch(NamedTuple):
    """`if`, `range` and `with`."""

    kind: str
    words: tuple[str, ...]
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


Node = Text | Action | Branch


def parse(source: str) -> tuple[Node, ...]:
    """The template's nodes. Raises `Untranslatable`."""
    if len(source) > SOURCE_CHARS_MAX:
        raise Untranslatable(f"it has over {SOURCE_CHARS_MAX} characters")
    parser = _Parser(_pieces(source))
    nodes = parser.body(0)
    if parser.ended_by is not None:
        raise Untranslatable(f"a stray {parser.ended_by[0]}")
    return nodes


def fields_of(nodes: Sequence[Node]) -> set[str]:
    """The first name of each field that is mentioned anywhere, such as `Messages`."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, Text):
            continue
        found.update(name for word in node.words if word[0] in ".$)" for name in word.split(".")[1:] if name)
        if isinstance(node, Branch):
            found |= fields_of(node.body) | fields_of(node.otherwise)
    return found


class _Parser:
    def __init__(self, pieces: Sequence[str | tuple[str, ...]]) -> None:
        self._pieces = pieces
        self._place = 0
        self.ended_by: tuple[str, ...] | None = None
        """The `end` or `else` that a body stopped at; None at the end of the template."""

    def body(self, depth: int) -> tuple[Node, ...]:
        """Nodes up to an `end` or `else`, or the end of everything."""
        if depth > DEPTH_MAX:
            raise Untranslatable("it is nested too deep")
        nodes: list[Node] = []
        while self._place < len(self._pieces):
            piece = self._pieces[self._place]
            self._place += 1
            if isinstance(piece, str):
                nodes.append(Text(piece))
            elif piece[0] in {"end", "else"}:
                self.ended_by = piece
                return tuple(nodes)
            elif piece[0] in {"if", "range", "with"}:
                nodes.append(self._branch(piece[0], piece[1:], depth))
            elif piece[0] in {"define", "template", "block"}:
                raise Untranslatable(f"it uses {piece[0]}")
            else:
                nodes.append(Action(piece))
        self.ended_by = None
        return tuple(nodes)

    def _branch(self, kind: str, words: tuple[str, ...], depth: int) -> Branch:
        body = self.body(depth + 1)
        otherwise: tuple[Node, ...] = ()
        if self.ended_by is not None and self.ended_by[0] == "else":
            further = self.ended_by[1:]
            if further[:1] in {("if",), ("with",)}:  # `else if` shares the `end`
                return Branch(kind, words, body, (self._branch(further[0], further[1:], depth + 1),))
            otherwise = self.body(depth + 1)
        if self.ended_by != ("end",):
            raise Untranslatable(f"a {kind} without its end")
        return Branch(kind, words, body, otherwise)


def _pieces(source: str) -> list[str | tuple[str, ...]]:
    """Texts, trimmed as the actions beside them say, and the words of actions."""
    pieces: list[str | tuple[str, ...]] = []
    place, trim = 0, False
    while True:
        start = source.find("{{", place)
        text = source[place:] if start < 0 else source[place:start]
        text = text.lstrip(_SPACE) if trim else text
        trims_before = start >= 0 and source.startswith("-", start + 2) and source[start + 3 : start + 4] in {*_SPACE}
        text = text.rstrip(_SPACE) if trims_before else text
        if text:
            pieces.append(text)
        if start < 0:
            return pieces
        words, place, trim = _action(source, start + (3 if trims_before else 2))
        if words:
            pieces.append(words)


def _action(source: str, place: int) -> tuple[tuple[str, ...], int, bool]:
    """The words of an action, where it ends, and whether it trims what follows."""
    if comment := _COMMENT.match(source, place):
        return (), comment.end(), comment[0].endswith("-}}")
    words: list[str] = []
    while place < len(source):
        if source[place] in _SPACE:
            place += 1
        elif source.startswith("}}", place):
            return tuple(words), place + 2, False
        elif source.startswith("-}}", place) and source[place - 1] in _SPACE:
            return tuple(words), place + 3, True
        elif word := _WORD.match(source, place):
            words.append(word[0])
            place = word.end()
        else:
            raise Untranslatable(f"it cannot be read at {source[place : place + 20]!r}")
    raise Untranslatable("an action does not end")
