"""Structured output as clients ask for it: every server's form, every way to be wrong, each bound."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.openai.chat import ChatRequest
from llmvisor.http.openai.completions import CompletionRequest
from llmvisor.services.service import Generation
from llmvisor.supervision.requests import generate_command
from llmvisor_runtimes.protocol import AdapterScale, Grammar, Sampling

CHAT = BodyDecoder(ChatRequest)
COMPLETION = BodyDecoder(CompletionRequest)
HI = {"role": "user", "content": "hi"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
SCHEMA_TEXT = json.dumps(SCHEMA)
GBNF = 'root ::= "yes" | "no"'
LARK = 'start: "yes" | "no"'


def chat(**fields: Any) -> Generation:
    return CHAT.decode(json.dumps({"messages": [HI], **fields}).encode()).generation("req")


def completion(**fields: Any) -> Generation:
    (generation,) = COMPLETION.decode(json.dumps({"prompt": "hi", **fields}).encode()).generations("req")
    return generation


def nested(levels: int) -> dict[str, Any]:
    """A schema of so many levels."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


FORMS: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a-B_9", "strict": True, "schema": SCHEMA},
            }
        },
        Grammar("json_schema", SCHEMA_TEXT),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"strict": False, "schema": SCHEMA}}},
        Grammar("json_schema", SCHEMA_TEXT),
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"guided_json": SCHEMA}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"guided_json": SCHEMA_TEXT}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"guided_json": {}}, Grammar("json_schema", "{}")),
    ({"guided_regex": r"\d+ä"}, Grammar("regex", r"\d+ä")),
    ({"guided_choice": ["a", '"', "é"]}, Grammar("choice", '["a","\\"","é"]')),
    ({"guided_grammar": LARK}, Grammar("lark", LARK)),
    ({"guided_grammar": GBNF}, Grammar("gbnf", GBNF)),
    ({"grammar": GBNF}, Grammar("gbnf", GBNF)),
    ({"grammar": "%llguidance {}\n" + LARK}, Grammar("lark", "%llguidance {}\n" + LARK)),
    ({"json_schema": SCHEMA}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"structured_outputs": {"json": SCHEMA_TEXT, "regex": None}}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
    ({"structured_outputs": {"choice": ["a"]}}, Grammar("choice", '["a"]')),
    ({"structured_outputs": {"grammar": LARK, "whitespace_pattern": " "}}, Grammar("lark", LARK)),
    ({"structured_outputs": {"grammar": GBNF}}, Grammar("gbnf", GBNF)),
    ({"structured_outputs": {"json_object": True, "json": None}}, Grammar("json_object")),
    ({"structured_outputs": None, "guided_json": None, "json_schema": None, "grammar": None}, None),
    ({"response_format": {"type": "text"}, "guided_regex": "a"}, Grammar("regex", "a")),
]


@pytest.mark.parametrize(("fields", "expected"), FORMS, ids=lambda value: repr(value)[:50])
def test_every_form_becomes_one_grammar(fields: dict[str, Any], expected: Grammar | None) -> None:
    """OpenAI's, vLLM's and llama.cpp's words for the same thing, on both endpoints."""
    assert chat(**fields).grammar == expected
    assert completion(**fields).grammar == expected


def test_schema_keeps_its_own_text() -> None:
    """The order of properties, numbers and escapes reach the worker as they were written."""
    schema = b'{ "b": {"const": 1e400}, "a":\t{"const":"\\u00e9\xc3\xa9"} }'
    body = b'{"messages":[{"role":"user","content":"x"}],"guided_json":' + schema.replace(b"1e400", b"1.50") + b"}"
    grammar = CHAT.decode(body).generation("req").grammar
    assert grammar is not None
    assert grammar.source.encode() == schema.replace(b"1e400", b"1.50")


OBJECT_FORMAT = {"type": "json_object"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"response_format": 5}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": 5}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a\n", "schema": {}}}},
        "response_format.json_schema.name",
    ),
    ({"response_format": {"type": "json_object", "schema": "x"}}, "response_format.schema"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[1]"}, "guided_json"),
    ({"guided_json": '"{}"'}, "guided_json"),
    ({"guided_json": True}, "guided_json"),
    ({"json_schema": 5}, "json_schema"),
    ({"json_schema": nested(limits.schema_depth_max + 1)}, "json_schema"),
    ({"guided_json": json.dumps(nested(limits.schema_depth_max + 1))}, "guided_json"),
    ({"guided_json": {"x": "y" * limits.grammar_bytes_max}}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_regex": "a" * (limits.grammar_bytes_max + 1)}, "guided_regex"),
    ({"guided_regex": "é" * (limits.grammar_bytes_max // 2 + 1)}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"guided_choice": [""]}, "guided_choice[0]"),
    ({"guided_choice": ["a", 1]}, "guided_choice[1]"),
    ({"guided_choice": ["a"] * (limits.grammar_choices_max + 1)}, "guided_choice"),
    ({"guided_choice": ["a" * limits.grammar_bytes_max]}, "guided_choice"),
    ({"guided_grammar": ""}, "guided_grammar"),
    ({"grammar": ""}, "grammar"),
    ({"grammar": {}}, "grammar"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
    ({"structured_outputs": {"choice": [5]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"structural_tag": {"x": 1}}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
    ({"response_format": OBJECT_FORMAT, "grammar": GBNF}, "grammar"),
    ({"response_format": OBJECT_FORMAT, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"], "json_schema": {}}, "json_schema"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: repr(value)[:60])
def test_wrong_form_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """What is no schema, no grammar, too long, too deep, or asked for twice: the path leads to it."""
    for ask in (chat, completion):
        with pytest.raises(InvalidRequest) as error:
            ask(**fields)
        assert error.value.param == param
        assert error.value.status == 400
        assert len(str(error.value)) < 300


def test_forms_at_their_bounds_are_taken() -> None:
    """The longest, the deepest, the most."""
    longest = {"x": "y" * (limits.grammar_bytes_max - len('{"x": ""}'))}
    assert chat(guided_json=longest).grammar is not None
    assert chat(json_schema=nested(limits.schema_depth_max)).grammar is not None
    assert chat(guided_regex="a" * limits.grammar_bytes_max).grammar is not None
    assert chat(guided_choice=["a"] * limits.grammar_choices_max).grammar is not None


def test_lone_surrogate_in_a_schema_is_refused() -> None:
    """A schema is looked at before it goes anywhere."""
    body = b'{"messages":[{"role":"user","content":"x"}],"guided_json":{"const":"\\ud800"}}'
    with pytest.raises(InvalidRequest):
        CHAT.decode(body).generation("req")


def test_form_and_tools_are_not_taken_together() -> None:
    """An answer that has to be JSON can be no call; tools that must not be used are no hindrance."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    for choice in (None, "auto", "required"):
        with pytest.raises(InvalidRequest) as error:
            chat(tools=tools, tool_choice=choice, response_format=OBJECT_FORMAT)
        assert error.value.param == "response_format"
    assert chat(tools=tools, tool_choice="none", guided_regex="a").grammar == Grammar("regex", "a")
    assert chat(tools=[], guided_regex="a").grammar == Grammar("regex", "a")


def test_worker_is_told_the_form_the_adapters_and_how_to_guess() -> None:
    """All three reach the frame that the worker gets."""
    generation = chat(guided_regex="a+", adapters={"a": 0.5}, speculative="draft")
    command = generate_command(3, generation, Sampling(), None)
    assert command.grammar == Grammar("regex", "a+")
    assert command.adapters == [AdapterScale("a", 0.5)]
    assert command.speculative == "draft"
    plain = generate_command(4, chat(), Sampling(), None)
    assert (plain.grammar, plain.adapters, plain.speculative) == (None, None, None)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(["response_format", "guided_json", "guided_choice", "grammar", "structured_outputs", "tools"])


@given(st.dictionaries(_names, _json, max_size=3))
def test_any_value_makes_a_grammar_or_is_refused(fields: dict[str, object]) -> None:
    """Whatever stands in these fields, nothing but a request error comes out, and a grammar survives its frame."""
    with suppress(InvalidRequest):
        grammar = chat(**fields).grammar
        assert msgspec.convert(msgspec.to_builtins(grammar), Grammar | None) == grammar
