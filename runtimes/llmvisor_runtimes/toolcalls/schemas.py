"""The JSON Schemas of tools' parameters, made ready for a grammar."""

from __future__ import annotations

from typing import Any

import msgspec

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Tool
from llmvisor_runtimes.structured.schema import COMPACT, prepared_schema

_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"})
_SPACED = {**COMPACT, "item_separator": ", ", "key_separator": ": "}
"""As models were trained to write arguments."""


def arguments_schema(tool: Tool, number: int) -> str:
    """The schema of a tool's arguments as llguidance takes it in `%json`; `number` is the tool's place in the request.

    A tool that names no parameters gets none. Raises `RequestError` where they are no schema of an object.
    """
    param = f"tools.{number}.function.parameters"
    try:
        schema = msgspec.json.decode(tool.parameters or b"{}", type=dict[str, Any])
        if schema.get("type", "object") != "object":
            raise ValueError("they are not of type object")  # noqa: TRY301 - told with the others right below
        if not schema.keys() & _COMBINING:
            if (not schema or schema.get("properties") == {}) and not schema.keys() & _OPEN:
                schema["additionalProperties"] = False
            schema["type"] = "object"
        prepared: dict[str, Any] = msgspec.json.decode(prepared_schema(msgspec.json.encode(schema).decode()))
    except (ValueError, RecursionError) as error:  # msgspec's own errors are such too
        message = f"the parameters of the tool {tool.name} are no JSON Schema that can be used: {error}"
        raise RequestError("invalid_value", message, param) from error
    prepared["x-guidance"] = _SPACED
    return msgspec.json.encode(prepared).decode()
