"""YAML into plain values that know their lines. Pure.

Built on PyYAML's event stream rather than on its loader, for what a configuration needs beyond it: lines, duplicate
keys, bounds on depth and on what aliases expand to, and the scalars of YAML 1.2 (`no` is a text, `0600` keeps its
digits).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
import yaml

from llmvisor import limits


class _Mark(Protocol):
    """Where PyYAML's two scanners say they are; they share no class."""

    @property
    def line(self) -> int: ...


class DocumentError(Exception):
    """Text that is no YAML, or more of it than a configuration may be; `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class Scalar(msgspec.Struct, frozen=True):
    """One value, and the text that it was read from."""

    value: bool | int | float | str | None
    text: str
    line: int
    size: int = 1
    depth: int = 0


class Sequence(msgspec.Struct):
    items: list[Node]
    line: int
    size: int = 1
    """Nodes in here, every alias counted as what it stands for."""
    depth: int = 1


class Entry(msgspec.Struct, frozen=True):
    key: str
    line: int
    node: Node


class Mapping(msgspec.Struct):
    entries: dict[str, Entry]
    line: int
    size: int = 1
    depth: int = 1
    merged: set[str] = set()
    """Keys that came through `<<`, which the mapping's own ones replace."""


Node = Scalar | Sequence | Mapping


def plain(node: Node) -> object:
    """The node as builtin values."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {entry.key: plain(entry.node) for entry in node.entries.values()}


_INT = re.compile(r"[-+]?[0-9]{1,30}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


def scalar_value(text: str) -> bool | int | float | str | None:
    """What an unquoted text stands for, as YAML 1.2 has it; infinities are texts."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if abs(number) != float("inf") else text
    return text


def read_document(text: str) -> tuple[Mapping, list[tuple[int, str]]]:
    """A file's mapping, and what is wrong in it without stopping the reading: lines and reasons.

    Raises `DocumentError` where the text cannot be read on: wrong syntax, too deep, not one mapping, nothing at all.
    """
    builder = _Builder()
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(_line(mark), _reason(error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, f"the character {error.character!r} is not allowed in YAML") from error
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise DocumentError(1, f"no YAML: {error}") from error
    if not isinstance(builder.root, Mapping):
        found = "nothing in it" if builder.empty else "no mapping (`key: value` lines)"
        raise DocumentError(1, f"{found}; `llmvisor config init` writes an example")
    return builder.root, builder.problems


def _events(text: str) -> Iterator[yaml.Event]:
    # The C scanner is some 20 times faster; it reads the same language.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.parse(text, Loader=loader)


def _line(mark: _Mark | None) -> int:
    return 1 if mark is None else mark.line + 1


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = f"{error.problem or 'no YAML'} {error.context or ''}".strip()
    if "\\t" in problem or "cannot start any token" in problem:
        return "a tab cannot indent YAML, or a value begins with a sign that needs quotes"
    begun, found = error.context_mark, error.problem_mark
    if begun is not None and found is not None and begun.line != found.line:
        return f"{problem}, begun in line {begun.line + 1}"
    return problem


class _Builder:
    """Takes events and builds nodes; its own stack, so that no depth of input is a depth of calls."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.empty = True
        self.problems: list[tuple[int, str]] = []
        self._stack: list[tuple[Sequence | Mapping, str | None]] = []
        self._keys: list[Scalar | None] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: yaml.Event) -> None:
        line = _line(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise DocumentError(line, "a second document; a configuration is one")
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event, line)
            # The C scanner gives an empty style where the other gives None.
            value = event.value if event.style else scalar_value(event.value)
            self._add(Scalar(value, event.value, line), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event, line), None)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self._refuse_tag(event, line)
            self._open(Sequence([], line) if isinstance(event, yaml.SequenceStartEvent) else Mapping({}, line), event)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            node, anchor = self._stack.pop()
            self._keys.pop()
            self._add(node, anchor)

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.tag not in (None, "!"):
            raise DocumentError(line, f"the tag {event.tag}: tags have no meaning here")

    def _alias(self, event: yaml.AliasEvent, line: int) -> Node:
        node = self._anchors.get(event.anchor or "")
        if node is None:
            raise DocumentError(line, f"the alias *{event.anchor} names no anchor above it")
        return node

    def _open(self, node: Sequence | Mapping, event: yaml.CollectionStartEvent) -> None:
        if len(self._stack) >= limits.config_depth_max:
            raise DocumentError(node.line, f"nested deeper than {limits.config_depth_max} levels")
        if self._keys and isinstance(self._stack[-1][0], Mapping) and self._keys[-1] is None:
            raise DocumentError(node.line, "a key has to be one word")
        self._stack.append((node, event.anchor))
        self._keys.append(None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
            self.empty = isinstance(node, Scalar) and node.value is None
            return
        parent = self._stack[-1][0]
        if isinstance(parent, Mapping) and self._keys[-1] is None:
            if not isinstance(node, Scalar):
                raise DocumentError(parent.line, "a key has to be one word")
            self._keys[-1] = node
            return
        self._grow(parent, node)
        if isinstance(parent, Sequence):
            parent.items.append(node)
        else:
            self._set(parent, node)

    def _grow(self, parent: Sequence | Mapping, node: Node) -> None:
        parent.size += node.size
        parent.depth = max(parent.depth, node.depth + 1)
        if parent.depth > limits.config_depth_max:
            raise DocumentError(node.line, f"nested deeper than {limits.config_depth_max} levels")
        if parent.size > limits.config_nodes_max:
            raise DocumentError(node.line, f"more than {limits.config_nodes_max} values, aliases included")

    def _set(self, parent: Mapping, node: Node) -> None:
        key = self._keys[-1]
        assert key is not None
        self._keys[-1] = None
        if key.text == "<<" and isinstance(key.value, str):
            self._merge(parent, node, key.line)
            return
        earlier = parent.entries.get(key.text)
        if earlier is not None and key.text not in parent.merged:
            self.problems.append((key.line, f"the key {key.text!r} is there already, in line {earlier.line}"))
            return
        parent.merged.discard(key.text)
        parent.entries[key.text] = Entry(key.text, key.line, node)

    def _merge(self, parent: Mapping, node: Node, line: int) -> None:
        sources = node.items if isinstance(node, Sequence) else [node]
        for source in sources:
            if not isinstance(source, Mapping):
                raise DocumentError(line, "`<<` takes a mapping, or a list of mappings")
            for key, entry in source.entries.items():
                if key not in parent.entries:
                    parent.entries[key] = entry
                    parent.merged.add(key)
