"""Which layer set a value, and every value of a tree by its path. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from llmvisor.config.tree import Config
from llmvisor.control.api import ConfigValue

LayerName = Literal["default", "file", "dotenv", "environment", "flag"]
Path = tuple[str, ...]

SECRET_SHOWN = "****"  # noqa: S105 - what stands in for one
_SECRET_NAME = re.compile(r"(api_?key|token|secret|password|passwd|credential)", re.IGNORECASE)


class Origin(msgspec.Struct, frozen=True):
    """Who set a value."""

    layer: LayerName
    where: str
    """`config.yaml:14`, `.env:3 PORT`, `PORT`, `--port`, or `default`."""
    line: int = 0
    """Of the file; 0 = none."""


DEFAULT = Origin("default", "default")


def dotted(path: Path) -> str:
    return ".".join(path)


def is_secret(path: Path) -> bool:
    """Whether the value there is one that nobody may read: what a worker's environment or a backend is handed."""
    return len(path) > 3 and path[2] in ("env", "options") and _SECRET_NAME.search(path[3]) is not None


def shown(path: Path, value: object) -> object:
    """The value as it may be printed."""
    return SECRET_SHOWN if is_secret(path) and value is not None and not isinstance(value, (bool, int)) else value


def leaves(node: msgspec.Struct, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every value below a part of the tree, in the tree's order; a list is one value, `env` and `options` are many."""
    for name in node.__struct_fields__:
        yield from _leaves_of(getattr(node, name), (*path, name))


def _leaves_of(value: object, path: Path) -> Iterator[tuple[Path, object]]:
    if isinstance(value, msgspec.Struct):
        yield from leaves(value, path)
    elif isinstance(value, dict) and len(path) in (1, 3) and path[0] in ("models", "backends"):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves_of(item, (*path, str(key)))  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield path, value


def values_of(config: Config, origins: dict[str, Origin]) -> Iterator[ConfigValue]:
    """Every effective value with who set it, secrets masked."""
    for path, value in leaves(config):
        origin = origins.get(dotted(path), DEFAULT)
        encoded = msgspec.Raw(msgspec.json.encode(shown(path, value)))
        yield ConfigValue(path=dotted(path), value=encoded, layer=origin.layer, origin=origin.where)
