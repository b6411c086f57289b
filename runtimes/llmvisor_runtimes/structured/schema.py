"""JSON Schemas made ready to be compiled: bounded, compact, without what says nothing. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeGuard

from llmvisor_runtimes import limits
from llmvisor_runtimes.structured.ranges import mend_range

JsonObject = dict[str, object]
Schema = JsonObject | bool

COMPACT: JsonObject = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
"""llguidance's options: no whitespace that could go on for ever, and no keyword passed over in silence."""

_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
"""Those that llguidance writes. Others are remarks: JSON Schema lets a validator pass over a format."""
_DIALECTS = ("http://json-schema.org/draft-", "https://json-schema.org/draft/")

_ONE = ("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else", "propertyNames",
        "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OPEN = {"additionalProperties", "patternProperties", "minProperties", "unevaluatedProperties"}
"""An object with one of these says itself what else may be in it."""
_EMPTY: dict[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "not": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "propertyNames": (True, {}),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
}
"""Keywords with the values that allow everything: llguidance knows the keyword not even then."""


def prepared_schema(source: str) -> str:
    """A schema for llguidance, also within `%json` of a Lark grammar: what it allows is written compactly.

    An object that names its properties, and says nothing of others, gets no others: what fits the closed schema fits
    the open one, and a small model would invent properties for ever. `additionalProperties: true` keeps it open.

    Raises `ValueError` with the reason where it is no schema, too large, or only an endless value would do.
    """
    root = _decoded(source)
    walk = _Walk()
    walk.visit(root, depth=1)
    if not walk.can_end(root):
        raise ValueError("only an endless value would fit this schema: it requires itself within itself")
    walk.close()
    root["x-guidance"] = COMPACT
    return json.dumps(root, ensure_ascii=False, separators=(",", ":"))


def _decoded(source: str) -> JsonObject:
    try:
        root: object = json.loads(source, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"the schema is nested deeper than {limits.schema_depth_max} levels") from error
    except ValueError as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    if root is True:
        return {}
    if root is False:
        raise ValueError("nothing fits the schema `false`")
    if not _is_object(root):
        raise ValueError("a schema has to be a JSON object")
    return root


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


class _Walk:
    """Goes through a schema once, changing it in place."""

    def __init__(self) -> None:
        self._nodes: list[JsonObject] = []
        self._references: dict[str, Schema] = {}
        """What `$ref`s name within the schema itself."""

    def visit(self, schema: JsonObject, *, depth: int) -> None:
        """Check the bounds and leave out what says nothing. Raises `ValueError`."""
        self._nodes.append(schema)
        if depth > limits.schema_depth_max:
            raise ValueError(f"the schema is nested deeper than {limits.schema_depth_max} levels")
        if len(self._nodes) > limits.schema_nodes_max:
            raise ValueError(f"the schema has more than {limits.schema_nodes_max} parts")
        _leave_out(schema)
        mend_range(schema)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in self._references:
            self._references[reference] = _target(self._nodes[0], reference)
            if len(self._references) > limits.schema_references_max:
                raise ValueError(f"the schema refers to more than {limits.schema_references_max} places")
        for part in _parts(schema):
            self.visit(part, depth=depth + 1)

    def can_end(self, root: JsonObject) -> bool:
        """Whether a finite value fits. A reference can end where what it names can without it."""
        ending: set[str] = set()
        while True:
            more = {
                reference
                for reference, schema in self._references.items()
                if reference not in ending and _can_end(schema, ending, limits.schema_depth_max)
            }
            if not more:
                return _can_end(root, ending, limits.schema_depth_max)
            ending |= more

    def close(self) -> None:
        """Allow no properties beside those that are named; nowhere, where objects are put together from parts."""
        if not any(_combines(node) for node in self._nodes):
            for node in filter(_names_all, self._nodes):
                node["additionalProperties"] = False


def _combines(schema: JsonObject) -> bool:
    joined = schema.keys() & {"$ref", "anyOf", "oneOf"} and schema.keys() & {"properties", "required", *_OPEN}
    return bool(joined) or "allOf" in schema


def _names_all(schema: JsonObject) -> bool:
    """Whether an object's own properties suffice for it."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not _is_object(properties) or not properties or schema.keys() & _OPEN:
        return False
    return _is_list(required) and all(name in properties for name in required)


def _leave_out(schema: JsonObject) -> None:
    for name, empty in _EMPTY.items():
        # `0 == False`, but a number here is a mistake that llguidance shall tell of.
        if any(type(schema.get(name)) is type(value) and schema[name] == value for value in empty):
            del schema[name]
    if schema.get("format") not in _FORMATS:
        schema.pop("format", None)
    dialect = schema.get("$schema")
    if not (isinstance(dialect, str) and dialect.startswith(_DIALECTS)):
        schema.pop("$schema", None)
    schema.pop("x-guidance", None)


def _parts(schema: JsonObject) -> Iterator[JsonObject]:
    """The schemas directly within one."""
    for name in _ONE:
        if _is_object(part := schema.get(name)):
            yield part
    for name in _LIST:
        if _is_list(parts := schema.get(name)):
            yield from (part for part in parts if _is_object(part))
    for name in _NAMED:
        if _is_object(named := schema.get(name)):
            yield from (part for part in named.values() if _is_object(part))


def _target(root: JsonObject, reference: str) -> Schema:
    """What a reference names; where it leads elsewhere, a schema that anything fits: llguidance has the last word."""
    if not reference.startswith("#"):
        return True
    place: object = root
    for name in reference[1:].split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        if _is_object(place):
            place = place.get(key, True)
        elif _is_list(place) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        else:
            return True
    return place if _is_object(place) or isinstance(place, bool) else True


def _can_end(schema: object, ending: set[str], depth: int) -> bool:
    """Whether a finite value may fit. In doubt yes: this only finds what plainly requires itself."""
    if not _is_object(schema) or depth == 0:
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in ending:
        return False
    for name in ("anyOf", "oneOf"):
        if _is_list(parts := schema.get(name)) and not any(_can_end(part, ending, depth - 1) for part in parts):
            return False
    if _is_list(parts := schema.get("allOf")) and not all(_can_end(part, ending, depth - 1) for part in parts):
        return False
    kinds = schema.get("type")
    names = kinds if _is_list(kinds) else [kinds]
    if "const" in schema or "enum" in schema or not set(map(str, names)) <= {"object", "array"}:
        return True
    return any(_container_can_end(str(name), schema, ending, depth - 1) for name in names)


def _container_can_end(kind: str, schema: JsonObject, ending: set[str], depth: int) -> bool:
    if kind == "object":
        required = schema.get("required")
        named = schema.get("properties")
        properties: JsonObject = named if _is_object(named) else {}
        others = schema.get("additionalProperties", True)
        wanted = required if _is_list(required) else []
        return all(_can_end(properties.get(str(name), others), ending, depth) for name in wanted)
    least = schema.get("minItems")
    count = least if isinstance(least, int) else 0
    items = schema.get("prefixItems", schema.get("items"))
    first = items if _is_list(items) else []
    rest = schema.get("items", True)
    parts = first[:count]
    if count > len(first) and not _is_list(rest):
        parts = [*parts, rest]
    return all(_can_end(part, ending, depth) for part in parts)


def _is_object(value: object) -> TypeGuard[JsonObject]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)
