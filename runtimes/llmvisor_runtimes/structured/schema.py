"""JSON Schemas made ready to be compiled: bounded, compact, without what says nothing. Pure."""

from __future__ import annotations

import json

from llmvisor_runtimes import limits
from llmvisor_runtimes.structured.graph import Graph, JsonObject, Schema, is_list, is_object, parts
from llmvisor_runtimes.structured.ranges import mend_range, multiples_cheap

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

_OPEN = {"additionalProperties", "patternProperties", "minProperties", "unevaluatedProperties"}
"""An object with one of these says itself what else may be in it."""
_OTHERS = {"$ref", "anyOf", "oneOf"}
_REMARKS = {"$comment", "$defs", "$id", "$schema", "definitions", "default", "deprecated", "description", "examples",
            "title", "type"}  # fmt: skip
"""Beside a reference these do not make a value fit any more than what is referred to."""
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
    graph = walk.graph()
    if not graph.can_end():
        raise ValueError("only an endless value would fit this schema: it requires itself within itself")
    if graph.patterns_joined(limits.schema_patterns_joined_max) > limits.schema_patterns_joined_max:
        raise ValueError(f"it joins parts with more than {limits.schema_patterns_joined_max} patterns")
    walk.check_multiples()
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
    if not is_object(root):
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
        for part in parts(schema):
            self.visit(part, depth=depth + 1)

    def check_multiples(self) -> None:
        """Raises `ValueError` where the automata for all `multipleOf` would take too long to make."""
        numbers = {node["multipleOf"] for node in self._nodes if isinstance(node.get("multipleOf"), int | float)}
        if not multiples_cheap(numbers, joined=any(map(_joins, self._nodes))):
            raise ValueError("the numbers of multipleOf are too large")

    def graph(self) -> Graph:
        """What all of it leads to."""
        return Graph(self._nodes[0], self._references)

    def close(self) -> None:
        """Allow no properties beside those that are named; nowhere, where objects are put together from parts."""
        if not any(_combines(node) for node in self._nodes):
            for node in filter(_names_all, self._nodes):
                node["additionalProperties"] = False


def _combines(schema: JsonObject) -> bool:
    joined = schema.keys() & {"$ref", "anyOf", "oneOf"} and schema.keys() & {"properties", "required", *_OPEN}
    return bool(joined) or "allOf" in schema


def _joins(schema: JsonObject) -> bool:
    """Whether a value has to fit several schemas at once."""
    return "allOf" in schema or bool(schema.keys() & _OTHERS and len(schema.keys() - _REMARKS) > 1)


def _names_all(schema: JsonObject) -> bool:
    """Whether an object's own properties suffice for it."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not is_object(properties) or not properties or schema.keys() & _OPEN:
        return False
    return is_list(required) and all(name in properties for name in required)


def _leave_out(schema: JsonObject) -> None:
    for name, empty in _EMPTY.items():
        # `0 == False`, but a number here is a mistake that llguidance shall tell of.
        if any(type(schema.get(name)) is type(value) and schema[name] == value for value in empty):
            del schema[name]
    for name in ("type", "required"):
        # llguidance does its work once for each time that a name is told.
        if is_list(named := schema.get(name)) and all(isinstance(one, str) for one in named):
            schema[name] = list(dict.fromkeys(named))
    if schema.get("format") not in _FORMATS:
        schema.pop("format", None)
    dialect = schema.get("$schema")
    if not (isinstance(dialect, str) and dialect.startswith(_DIALECTS)):
        schema.pop("$schema", None)
    schema.pop("x-guidance", None)


def _target(root: JsonObject, reference: str) -> Schema:
    """What a reference names; where it leads elsewhere, a schema that anything fits: llguidance has the last word."""
    if not reference.startswith("#"):
        return True
    place: object = root
    for name in reference[1:].split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        if is_object(place):
            place = place.get(key, True)
        elif is_list(place) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        else:
            return True
    return place if is_object(place) or isinstance(place, bool) else True
