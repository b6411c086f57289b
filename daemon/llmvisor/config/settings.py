"""One value for one key, checked, with its origin: what every layer is made of. Pure."""

from __future__ import annotations

from typing import get_args

import msgspec

from llmvisor import limits
from llmvisor.config import schema
from llmvisor.config.document import DocumentError, Entry, Mapping, Node, Scalar, plain, read_document
from llmvisor.config.origins import LayerName, Origin, Path, dotted, shown
from llmvisor.config.values import Given, WrongValue, convert, show


class Setting(msgspec.Struct, frozen=True):
    """A key's value in one layer."""

    path: Path
    value: object
    origin: Origin
    folder: str
    """What a relative path in the value starts from."""


class Problem(msgspec.Struct, frozen=True):
    """Something wrong, and who brought it."""

    origin: Origin
    text: str
    path: Path = ()
    """The key whose value is missing in the tree for that."""

    def __str__(self) -> str:
        return self.text if self.origin.layer == "default" else f"{self.origin.where}: {self.text}"


def in_order(problems: list[Problem]) -> list[str]:
    """Problems as a person reads them: by layer, and by line."""
    # One line each, whatever stands in a key: an escape sequence of a file must not reach the terminal.
    ranks = {layer: rank for rank, layer in enumerate(get_args(LayerName))}
    ordered = sorted(problems, key=lambda each: (ranks[each.origin.layer], each.origin.line))
    return [one_line(str(problem)) for problem in ordered]


def one_line(text: str) -> str:
    """The text with what cannot be printed escaped, and cut where it is too long to be read."""
    printable = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[: limits.problem_chars_max])
    return printable if len(text) <= limits.problem_chars_max else f"{printable}…"


class Layer(msgspec.Struct):
    """What one layer sets, and what is wrong with it."""

    settings: list[Setting] = []
    problems: list[Problem] = []
    model_names: dict[str, Origin] = {}
    """Models that it names, in order, those without any key included."""


def wrong_value(path: Path, value: object, allowed: str) -> str:
    return f"{dotted(path)}: found {show(shown(path, value))}, allowed: {allowed}"


def at_line(name: str, line: int) -> Origin:
    return Origin("file", f"{name}:{line}", line)


def read_file(text: str, *, name: str, folder: str) -> Layer:
    """The layer of a configuration file's text."""
    layer = Layer()
    try:
        root, duplicates = read_document(text)
    except DocumentError as error:
        layer.problems.append(Problem(at_line(name, error.line), error.reason))
        return layer
    layer.problems += [Problem(at_line(name, line), reason) for line, reason in duplicates]
    _Walk(layer, name, folder).section(root, schema.ROOT, ())
    return layer


class _Walk:
    """Goes through a file's mapping beside the tree's types."""

    def __init__(self, layer: Layer, name: str, folder: str) -> None:
        self._layer = layer
        self._name = name
        self._folder = folder

    def section(self, mapping: Mapping, place: schema.Place, path: Path) -> None:
        for entry in mapping.entries.values():
            below = schema.below(place, entry.key)
            here = (*path, entry.key)
            if below is None:
                self._problem(entry.line, f"{dotted(here)}: {schema.unknown_key(place, here)}")
                continue
            if path == ("models",):
                self._layer.model_names[entry.key] = at_line(self._name, entry.line)
            if below.kind == "leaf":
                self._leaf(entry, below, here)
            else:
                self._nested(entry, below, here)

    def _nested(self, entry: Entry, place: schema.Place, path: Path) -> None:
        node = entry.node
        if isinstance(node, Mapping):
            self.section(node, place, path)
        elif not (isinstance(node, Scalar) and node.value is None):
            known = schema.keys(place)
            takes = f"keys: {', '.join(known)}" if known else "names, each with its own value"
            self._problem(entry.line, wrong_value(path, plain(node), takes), path)

    def _leaf(self, entry: Entry, place: schema.Place, path: Path) -> None:
        given = _given(entry.node)
        try:
            value = convert(given, place.type)
        except WrongValue as error:
            self._problem(entry.line, wrong_value(path, given.value, error.allowed), path)
            return
        self._layer.settings.append(Setting(path, value, at_line(self._name, entry.line), self._folder))

    def _problem(self, line: int, text: str, path: Path = ()) -> None:
        self._layer.problems.append(Problem(at_line(self._name, line), text, path))


def _given(node: Node) -> Given:
    return Given(plain(node), node.text if isinstance(node, Scalar) else None)
