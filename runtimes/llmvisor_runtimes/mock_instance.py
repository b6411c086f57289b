"""The smallest value that a JSON Schema lets through, for the mock's structured output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from llmvisor_runtimes.backend import RequestError

PARAM = "grammar"
DEPTH_MAX = 32
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "http://example.com",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
_TYPE_BY_WORD = {
    "properties": "object", "required": "object", "items": "array", "minItems": "array", "prefixItems": "array",
    "minLength": "string", "format": "string", "minimum": "number", "exclusiveMinimum": "number",
}  # fmt: skip
_LARGEST_COUNT = 10_000


def minimal_instance(schema: str | bytes) -> str:
    """The smallest value of a schema as JSON. Raises `RequestError` for a schema that the mock cannot satisfy."""
    try:
        root: object = msgspec.json.decode(schema or b"{}")
        value = _Instances(root).of(root, 0)
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, RecursionError, ArithmeticError, LookupError) as error:
        raise _refused(str(error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise _refused(f"it is malformed: {error}") from error


class _Instances:
    def __init__(self, root: object) -> None:
        self._root = root

    def of(self, schema: object, depth: int) -> object:
        """The smallest value of a part of the schema."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise _refused(f"{schema!r} is no schema with an instance")
        if depth > DEPTH_MAX:
            raise _refused(f"it is nested more than {DEPTH_MAX} deep")
        found = self._flat(cast("dict[str, Any]", schema), depth)
        if "const" in found:
            return found["const"]
        if found.get("enum"):
            return found["enum"][0]
        for word in ("anyOf", "oneOf"):
            if word in found:
                return self._first({**found}, word, depth)
        if "pattern" in found or "not" in found or "if" in found:
            raise _refused("the mock does not know pattern, not and if")
        return self._typed(_type(found), found, depth)

    def _first(self, schema: dict[str, Any], word: str, depth: int) -> object:
        """The first alternative that has an instance."""
        reason: RequestError | None = None
        for alternative in schema.pop(word):
            try:
                return self.of({"allOf": [schema, alternative]} if schema else alternative, depth + 1)
            except RequestError as error:
                reason = reason or error
        raise reason or _refused(f"{word} is empty")

    def _flat(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """The schema with what `$ref` and `allOf` bring in."""
        flat = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts: list[Any] = list(schema.get("allOf", []))
        if "$ref" in schema:
            parts.append(self._referenced(schema["$ref"]))
        for part in parts:
            if depth > DEPTH_MAX or not isinstance(part, dict):
                raise _refused("it refers to itself")
            for key, value in self._flat(cast("dict[str, Any]", part), depth + 1).items():
                flat[key] = _both(key, flat[key], value) if key in flat else value
        return flat

    def _referenced(self, reference: object) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(f"it refers to {reference!r}")
        value: Any = self._root
        for step in reference[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(value, dict) or key not in value:
                raise _refused(f"it refers to {reference}, which is not there")
            value = cast("dict[str, Any]", value)[key]
        return value

    def _typed(self, type: str, schema: Mapping[str, Any], depth: int) -> object:
        if type == "object":
            properties: dict[str, Any] = schema.get("properties", {})
            return {name: self.of(properties.get(name, True), depth + 1) for name in schema.get("required", [])}
        if type == "array":
            first: Sequence[Any] = schema.get("prefixItems", [])
            count = _count(schema.get("minItems", 0))
            return [self.of(first[i] if i < len(first) else schema.get("items", True), depth + 1) for i in range(count)]
        if type == "string":
            text = _FORMATS.get(schema.get("format", ""), "")
            return text + "x" * (_count(schema.get("minLength", 0)) - len(text))
        if type in ("integer", "number"):
            return _number(schema, whole=type == "integer")
        if type not in ("boolean", "null"):
            raise _refused(f"there is no type {type}")
        return False if type == "boolean" else None


def _both(key: str, first: Any, second: Any) -> Any:  # noqa: ANN401 - any word of a schema
    if key == "properties":
        return {**first, **second}
    if key == "required":
        return list(dict.fromkeys([*first, *second]))
    if key in ("minimum", "exclusiveMinimum", "minLength", "minItems"):
        return max(first, second)
    if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
        return min(first, second)
    return second


def _type(schema: Mapping[str, Any]) -> str:
    type = schema.get("type")
    if isinstance(type, list) and type:
        return str(cast("list[object]", type)[0])
    if isinstance(type, str):
        return type
    return next((_TYPE_BY_WORD[word] for word in schema if word in _TYPE_BY_WORD), "object")


def _count(value: Any) -> int:  # noqa: ANN401 - a number in a schema
    if not isinstance(value, int | float) or value > _LARGEST_COUNT:
        raise _refused(f"it asks for {value!r} of something, at most {_LARGEST_COUNT} are made")
    return int(value)


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    """Zero where that is allowed, otherwise what is nearest to a bound."""
    step = schema.get("multipleOf") or 1
    least = schema.get("minimum", -math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    most = schema.get("maximum", math.inf)
    below = schema.get("exclusiveMaximum", math.inf)
    if least <= 0 <= most and above < 0 < below:
        return 0
    if most < 0 or below <= 0:
        value = math.floor(min(most, below) / step) * step
        value -= step if value >= below else 0
    else:
        value = math.ceil(max(least, above) / step) * step
        value += step if value <= above else 0
    if least <= value <= most and above < value < below:
        return value
    middle = (max(least, above) + min(most, below)) / 2
    if whole or "multipleOf" in schema or not least <= middle <= most or not above < middle < below:
        raise _refused("no number is within its bounds")
    return middle


def _refused(reason: str) -> RequestError:
    return RequestError("unsupported_operation", f"the mock cannot make an instance of this schema: {reason}", PARAM)
