"""What keys the tree has at a path, and what is said about those that it does not have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Literal

import msgspec
from msgspec import inspect

from llmvisor.config.origins import Path, dotted
from llmvisor.config.tree import Config

Kind = Literal["section", "named", "open", "leaf"]
"""A fixed set of keys; names with a section each; names with a value each; a value."""

LATER: frozenset[str] = frozenset(
    {
        "routing", "version",
        "logging.content",
        "llm.services", "llm.prices",
        "models.*.source", "models.*.replicas",
    }
)  # fmt: skip
"""Keys of later versions: written by people who read the documentation of one."""

OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "models.*.chat_template": "chat_template",
        "models.*.lora": "adapters",
        "models.*.draft": "draft_model",
        "models.*.mmproj": "mmproj",
    }
)
"""Keys that other programs have beside the model's path, and a model's options have here."""


class Place(msgspec.Struct, frozen=True):
    """What stands at a path of the tree."""

    kind: Kind
    type: inspect.Type


@cache
def fields(struct: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.name: field for field in info.fields}


ROOT = Place("section", inspect.type_info(Config))


def _place(kind: inspect.Type) -> Place:
    if isinstance(kind, inspect.StructType):
        return Place("section", kind)
    if isinstance(kind, inspect.DictType):
        return Place("named" if isinstance(kind.value_type, inspect.StructType) else "open", kind)
    return Place("leaf", kind)


def below(place: Place, key: str) -> Place | None:
    """What stands under a key; None where there is no such key."""
    if isinstance(place.type, inspect.StructType):
        field = fields(place.type.cls).get(key)
        return None if field is None else _place(field.type)
    if isinstance(place.type, inspect.DictType):
        return _place(place.type.value_type)
    return None


def keys(place: Place) -> list[str]:
    """The keys of a section."""
    return list(fields(place.type.cls)) if isinstance(place.type, inspect.StructType) else []


def unknown_key(place: Place, path: Path) -> str:
    """What is said of a key that a section does not have."""
    key = dotted(_starred(path))
    if key in LATER:
        return "unknown key (a later version of llmvisor has it; this one does not)"
    if key in OPTIONS:
        return f"unknown key; it is one of the model's options: options: {{{OPTIONS[key]}: …}}"
    known = keys(place)
    near = nearest(path[-1], known)
    if near is not None:
        return f"unknown key, the nearest is {dotted((*path[:-1], near))}"
    return f"unknown key, allowed here: {', '.join(known)}"


def _starred(path: Path) -> Path:
    return ("models", "*", *path[2:]) if path[:1] == ("models",) and len(path) > 2 else path


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that someone may have meant."""
    by_folded = {each.casefold().replace("-", "_"): each for each in known}
    found = get_close_matches(word[:100].casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None
