"""What an answer has to be: the fields of OpenAI, vLLM and llama.cpp's server that say it → one `Grammar`. Pure."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import shown
from llmvisor_runtimes.protocol import Grammar

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
"""A rule as GBNF has it, and as no line of a Lark grammar can be."""
_LLGUIDANCE_MARK = "%llguidance"
"""Begins the Lark grammars that llama.cpp's server takes where it expects GBNF."""

Source = Annotated[str, Meta(min_length=1)]
Texts = Annotated[list[Source], Meta(min_length=1, max_length=limits.grammar_choices_max)]


class NamedSchema(msgspec.Struct):
    """`strict` changes nothing: an answer always keeps to its schema."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")] | None = None
    schema: msgspec.Raw = msgspec.Raw()


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: NamedSchema | None = None
    schema: msgspec.Raw = msgspec.Raw()
    """Beside the type, where llama.cpp's server has it."""


class StructuredOutputs(msgspec.Struct):
    """vLLM's newer name for its `guided_…` fields."""

    json: msgspec.Raw = msgspec.Raw()
    regex: Source | None = None
    choice: Texts | None = None
    grammar: Source | None = None
    json_object: bool | None = None
    structural_tag: msgspec.Raw = msgspec.Raw()


class Asked(NamedTuple):
    """A grammar, and the field that asked for it."""

    param: str
    grammar: Grammar


class GrammarFields(msgspec.Struct, kw_only=True, dict=True):
    """At most one of these. `dict` is for what is worked out once."""

    response_format: ResponseFormat | None = None
    guided_json: msgspec.Raw = msgspec.Raw()
    guided_regex: Source | None = None
    guided_choice: Texts | None = None
    guided_grammar: Source | None = None
    """Lark."""
    grammar: Source | None = None
    """GBNF."""
    json_schema: msgspec.Raw = msgspec.Raw()
    """llama.cpp's name of a schema."""
    structured_outputs: StructuredOutputs | None = None

    @cached_property
    def asked_grammar(self) -> Asked | None:
        """None where an answer is free. Raises `InvalidRequest`, `UnsupportedOperation`."""
        found = self._found()
        if len(found) > 1:
            first, second = found[0].param, found[1].param
            raise InvalidRequest(f"{second}: an answer takes one form, and {first} is set as well", param=second)
        if not found:
            return None
        size = len(found[0].grammar.source.encode())
        if size > limits.grammar_bytes_max:
            param = found[0].param
            raise InvalidRequest(
                f"{param}: expected at most {limits.grammar_bytes_max} bytes, found {size}", param=param
            )
        return found[0]

    @contextmanager
    def own_names(self) -> Generator[None]:
        """A worker that refuses the `grammar` is understood to mean the field that the client used."""
        try:
            yield
        except InvalidRequest as error:
            if self.asked_grammar is not None and error.param == "grammar":
                error.param = self.asked_grammar.param
            raise

    def _found(self) -> list[Asked]:
        found: list[Asked] = []
        if self.response_format is not None:
            found += _of_response_format(self.response_format)
        guided = StructuredOutputs(
            json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice, grammar=self.guided_grammar
        )
        found += _of_structured_outputs(guided, "guided_")
        if self.grammar is not None:
            kind = "lark" if self.grammar.startswith(_LLGUIDANCE_MARK) else "gbnf"
            found.append(Asked("grammar", Grammar(kind, self.grammar)))
        if is_set(self.json_schema):
            found.append(_of_schema(self.json_schema, "json_schema"))
        if self.structured_outputs is not None:
            inside = _of_structured_outputs(self.structured_outputs, "structured_outputs.")
            if not inside:
                message = "structured_outputs: expected one of json, regex, choice, grammar and json_object"
                raise InvalidRequest(message, param="structured_outputs")
            found += inside
        return found


def is_set(raw: msgspec.Raw) -> bool:
    """Whether a field that was left undecoded is there and not null."""
    return bytes(raw) not in {b"", b"null"}


def schema_text(raw: msgspec.Raw, param: str) -> str:
    """A JSON Schema as it came; of a string, what it says. Raises `InvalidRequest` for what is no schema or too deep.

    The text is kept, since the order of its properties is the order in which they are written.
    """
    try:
        schema: object = msgspec.json.decode(raw)
        text = schema if isinstance(schema, str) else bytes(raw).decode()
        if isinstance(schema, str):
            schema = msgspec.json.decode(schema)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"{param}: expected a JSON Schema: {error}", param=param) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{param}: expected a JSON Schema, an object, found {shown(schema)}", param=param)
    _check_depth(schema, param)  # pyright: ignore[reportUnknownArgumentType]  # any JSON
    return text


def _check_depth(value: object, param: str) -> None:
    level = [value]
    depth = 0
    while level := [child for parent in level for child in _children(parent)]:
        depth += 1
        if depth > limits.schema_depth_max:
            raise InvalidRequest(f"{param}: expected at most {limits.schema_depth_max} levels of nesting", param=param)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # any JSON
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]  # any JSON


def _of_schema(raw: msgspec.Raw, param: str) -> Asked:
    return Asked(param, Grammar("json_schema", schema_text(raw, param)))


def _of_response_format(given: ResponseFormat) -> list[Asked]:
    at = "response_format"
    if given.type == "text":
        return []
    if given.type not in {"json_object", "json_schema"}:
        message = f"{at}.type: expected text, json_object or json_schema, found {shown(given.type)}"
        raise InvalidRequest(message, param=f"{at}.type")
    if is_set(given.schema):
        return [_of_schema(given.schema, f"{at}.schema")]
    if given.type == "json_object":
        return [Asked(at, Grammar("json_object"))]
    if given.json_schema is None:
        raise InvalidRequest(f"{at}.json_schema is required", param=f"{at}.json_schema")
    param = f"{at}.json_schema.schema"
    if not is_set(given.json_schema.schema):
        raise InvalidRequest(f"{param} is required", param=param)
    return [_of_schema(given.json_schema.schema, param)]


def _of_structured_outputs(given: StructuredOutputs, prefix: str) -> list[Asked]:
    if is_set(given.structural_tag):
        param = f"{prefix}structural_tag"
        raise UnsupportedOperation(f"{param}: expected json, regex, choice or grammar instead", param=param)
    found: list[Asked] = []
    if is_set(given.json):
        found.append(_of_schema(given.json, f"{prefix}json"))
    if given.regex is not None:
        found.append(Asked(f"{prefix}regex", Grammar("regex", given.regex)))
    if given.choice is not None:
        found.append(Asked(f"{prefix}choice", Grammar("choice", msgspec.json.encode(given.choice).decode())))
    if given.grammar is not None:
        kind: Literal["gbnf", "lark"] = "gbnf" if _GBNF_RULE.search(given.grammar) else "lark"
        found.append(Asked(f"{prefix}grammar", Grammar(kind, given.grammar)))
    if given.json_object:
        found.append(Asked(f"{prefix}json_object", Grammar("json_object")))
    return found
