"""Changes one value in the text of a YAML file; every other character of it stays as it is. Pure.

PyYAML tells where each value stands, and the text is changed there: writing the whole document anew would change quotes
and the way it is laid out, and move comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple, cast

import yaml

_PART = re.compile(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([^."\']+)')
_COLON = re.compile(r"\s*:")
_INDENT = 2
_BYTE_ORDER_MARK = "\ufeff"


class EditError(Exception):
    """Why the text cannot be changed so."""


class Edit(NamedTuple):
    text: str
    path: tuple[str, ...]
    """The keys as they stand in the file: a model's name may have dots in it."""
    before: str | None
    """What stood there; None where nothing did."""


def split_key(key: str) -> list[str]:
    """`models."qwen2.5".n_ctx` in its parts; quotes hold a part with dots together. Raises `EditError`."""
    parts: list[str] = []
    place = 0
    while True:
        match = _PART.match(key, place)
        if match is None:
            raise EditError(f"{key!r} is no key: such as server.port")
        parts.append(next(group for group in match.groups() if group is not None))
        place = match.end()
        if place == len(key):
            return parts
        if key[place] != ".":
            raise EditError(f"{key!r} is no key: such as server.port")
        place += 1


def set_value(text: str, parts: Sequence[str], value: str, *, quoted: bool = False) -> Edit:
    """The text with that value at that key, which is made where it is missing.

    `value` stands there as it is where it is YAML on one line, else (or when `quoted`) as a quoted text. Raises
    `EditError`.
    """
    mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
    text = text[len(mark) :]
    root = _composed(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    editor = _Editor(text, newline, value, quoted=quoted)
    if root is None or root.tag.endswith(":null"):
        # Comments alone, or `---`.
        text = text if not text or text.endswith("\n") else text + newline
        edit = Edit(text + newline.join(editor.block(parts, 0)) + newline, tuple(parts), None)
    elif isinstance(root, yaml.MappingNode):
        edit = editor.changed(root, parts)
    else:
        raise EditError("the file holds no `key: value` lines")
    _check(root, edit, editor.wanted)
    return edit._replace(text=mark + edit.text)


class _Editor:
    def __init__(self, text: str, newline: str, value: str, *, quoted: bool) -> None:
        self._text = text
        self._newline = newline
        self._value = value.strip()
        self._quoted = quoted
        self.wanted: object = ""
        """What the value is to be read as."""

    def changed(self, node: yaml.MappingNode, parts: Sequence[str]) -> Edit:
        path: list[str] = []
        while True:
            count, key, child = _entry(node, parts)
            if key is None or child is None:
                return Edit(self._with_new(node, parts), (*path, *parts), None)
            path.append(key.value)
            parts = parts[count:]
            if self._is_alias(key, child):
                raise EditError(f"{'.'.join(path)} stands for another part of the file (*alias): edit it by hand")
            if not parts:
                return Edit(self._with_replaced(key, child), tuple(path), self._shown(child))
            if isinstance(child, yaml.MappingNode):
                node = child
            elif isinstance(child, yaml.ScalarNode) and child.tag.endswith(":null"):
                return Edit(self._with_filled(node, key, child, parts), (*path, *parts), None)
            else:
                raise EditError(f"{'.'.join(path)} is a value in the file, and has nothing below it")

    def block(self, parts: Sequence[str], column: int) -> list[str]:
        """Lines of nested keys, the value behind the last."""
        heads = [" " * (column + _INDENT * depth) + _key_text(part) + ":" for depth, part in enumerate(parts)]
        return [*heads[:-1], f"{heads[-1]} {self._written(in_flow=False)}"]

    def _written(self, *, in_flow: bool) -> str:
        plain = not self._quoted and _stands_alone(self._value, in_flow=in_flow)
        self.wanted = _composed_value(self._value) if plain else self._value
        return self._value if plain else _quoted(self._value)

    def _with_replaced(self, key: yaml.ScalarNode, child: yaml.Node) -> str:
        text, colon = self._text, self._colon(key)
        end = self._content_end(key, child)
        if isinstance(child, yaml.CollectionNode) and not child.flow_style:
            # The comment behind the colon stays, the lines below go.
            head = text[: self._line_end(colon)]
            return f"{head[:colon]} {self._written(in_flow=False)}{head[colon:]}{text[end:]}"
        start = child.start_mark.index
        space = " " if start == colon else ""
        return f"{text[:start]}{space}{self._written(in_flow=self._in_flow(start))}{text[end:]}"

    def _with_filled(
        self, node: yaml.MappingNode, key: yaml.ScalarNode, child: yaml.ScalarNode, parts: Sequence[str]
    ) -> str:
        """Keys below one that has nothing behind it, or `null`."""
        text, colon = self._text, self._colon(key)
        if node.flow_style:
            return f"{text[:colon]} {self._flow(parts)}{text[child.end_mark.index :]}"
        rest = text[child.end_mark.index :] if child.end_mark.index > colon else text[colon:]
        line = rest[: _line_end(rest, 0)]
        below = self.block(parts, key.start_mark.column + _INDENT)
        return text[:colon] + line.rstrip() + self._newline + self._newline.join(below) + rest[len(line) :]

    def _with_new(self, node: yaml.MappingNode, parts: Sequence[str]) -> str:
        text = self._text
        if node.flow_style:
            end = self._content_end(*node.value[-1]) if node.value else node.start_mark.index + 1
            comma = ", " if node.value else ""
            return f"{text[:end]}{comma}{self._flow_entry(parts)}{text[end:]}"
        column = node.value[0][0].start_mark.column
        end = self._line_end(self._content_end(*node.value[-1]))
        lines = self._newline.join(self.block(parts, column))
        return f"{text[:end]}{self._newline}{lines}{text[end:] or self._newline}"

    def _flow(self, parts: Sequence[str]) -> str:
        return "{" + self._flow_entry(parts) + "}"

    def _flow_entry(self, parts: Sequence[str]) -> str:
        below = self._written(in_flow=True) if len(parts) == 1 else self._flow(parts[1:])
        return f"{_key_text(parts[0])}: {below}"

    def _content_end(self, key: yaml.ScalarNode, child: yaml.Node) -> int:
        """Where a value's own text ends: a block's mark stands behind the comments that follow it."""
        if self._is_alias(key, child):
            return self._line_end(self._colon(key))
        if isinstance(child, yaml.MappingNode) and not child.flow_style:
            return self._content_end(*child.value[-1])
        if isinstance(child, yaml.SequenceNode) and not child.flow_style:
            return self._content_end(key, child.value[-1])
        start, end = child.start_mark.index, child.end_mark.index
        return start + len(self._text[start:end].rstrip())

    def _colon(self, key: yaml.ScalarNode) -> int:
        match = _COLON.match(self._text, key.end_mark.index)
        if match is None:
            raise EditError(f"{key.value} is written in a way that is not understood: edit it by hand")
        return match.end()

    def _line_end(self, place: int) -> int:
        return _line_end(self._text, place)

    def _in_flow(self, place: int) -> bool:
        """Whether the value there stands in braces: then commas end it."""
        return any(start < place < end for start, end in self._flows)

    @property
    def _flows(self) -> list[tuple[int, int]]:
        root = _composed(self._text)
        return [] if root is None else list(_flow_ranges(root))

    def _is_alias(self, key: yaml.ScalarNode, child: yaml.Node) -> bool:
        return child.start_mark.index < key.end_mark.index

    def _shown(self, child: yaml.Node) -> str:
        if isinstance(child, yaml.ScalarNode):
            return str(child.value) or "null"
        in_flow = isinstance(child, yaml.CollectionNode) and child.flow_style
        return self._text[child.start_mark.index : child.end_mark.index].strip() if in_flow else "…"


def _flow_ranges(node: yaml.Node) -> Sequence[tuple[int, int]]:
    if not isinstance(node, yaml.CollectionNode):
        return []
    if node.flow_style:
        return [(node.start_mark.index, node.end_mark.index)]
    children = [child for _, child in node.value] if isinstance(node, yaml.MappingNode) else node.value
    return [found for child in children for found in _flow_ranges(child)]


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise EditError(f"{where}{error.problem or 'no YAML'}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise EditError(f"no YAML: {error}") from None


def _entry(node: yaml.MappingNode, parts: Sequence[str]) -> tuple[int, yaml.ScalarNode | None, yaml.Node | None]:
    """The entry that the first parts name, the longest name first, with how many parts it takes."""
    named = {key.value: (key, child) for key, child in node.value if isinstance(key, yaml.ScalarNode)}
    for count in range(len(parts), 0, -1):
        if found := named.get(".".join(parts[:count])):
            return count, *found
    return 0, None, None


def _key_text(part: str) -> str:
    is_word = _stands_alone(part, in_flow=True) and _composed_value(part) == part and part[0] not in "\"'"
    return part if is_word else _quoted(part)


def _quoted(text: str) -> str:
    """In double quotes; what YAML takes for a line break or refuses is escaped: more than what JSON escapes."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08X}" for sign in quoted)


def _composed_value(text: str) -> object:
    root = _composed(f"k: {text}")
    assert isinstance(root, yaml.MappingNode)
    return _plain(root.value[0][1])


def _stands_alone(value: str, *, in_flow: bool) -> bool:
    """Whether the text is a whole value of one line where it is put as it is."""
    try:
        root = yaml.compose(f"{{k: {value}}}" if in_flow else f"k: {value}", Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return False
    if not isinstance(root, yaml.MappingNode) or len(root.value) != 1 or not value or not value.isprintable():
        return False
    child = root.value[0][1]
    start = 4 if in_flow else 3
    is_block = isinstance(child, yaml.CollectionNode) and not child.flow_style
    return not is_block and (child.start_mark.index, child.end_mark.index) == (start, start + len(value))


def _check(root: yaml.Node | None, edit: Edit, value: object) -> None:
    """Raises `EditError` unless the new text says the same as the old one, but for that value."""
    wanted = _plain_mapping(root) if isinstance(root, yaml.MappingNode) else {}
    place = wanted
    for part in edit.path[:-1]:
        below = place.get(part)
        # What has nothing behind it becomes a mapping.
        filled = cast("dict[str, object]", below) if isinstance(below, dict) else {}
        place[part] = filled
        place = filled
    place[edit.path[-1]] = value
    found = _composed(edit.text)
    if found is None or _plain(found) != wanted:
        raise EditError("the file is written in a way that is not understood: edit it by hand")


def _plain(node: yaml.Node) -> object:
    """Values as texts, whatever they stand for; keys as they are written."""
    try:
        if isinstance(node, yaml.MappingNode):
            return _plain_mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return [_plain(child) for child in node.value]
    except RecursionError:
        raise EditError("the file contains itself") from None
    return str(node.value)


def _plain_mapping(node: yaml.MappingNode) -> dict[str, object]:
    return {str(key.value): _plain(child) for key, child in node.value}


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    end = len(text) if end < 0 else end
    return end - 1 if end > place and text[end - 1] == "\r" else end
