"""The mock's set replies: calls of tools, structured output, and whatever text a client's author wants."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mock_driver import Mock, reply_of
from tests.support.worker_client import GREEDY, Reply, text_request

from llmvisor_runtimes.backend import Constrains, RequestError
from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.mock_instance import minimal_instance
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Generate, Grammar, Tool

WEATHER = Tool(
    "get_weather",
    "The weather.",
    b'{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2},'
    b' "unit": {"enum": ["c", "f"]}}, "required": ["days", "unit"]}',
)
NOW = Tool("now")
Schema = dict[str, Any]
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": "é"}}\n</tool_call>'


def chat(content: str = "Hi", *, fields: dict[str, Any] | None = None, **prompt: Any) -> Generate:
    """A request of a conversation; `fields` are the request's own."""
    conversation = ChatPrompt([ChatMessage("user", content)], **prompt)
    return msgspec.structs.replace(Generate(1, "req-1", conversation, GREEDY), **(fields or {}))


def calls(reply: Reply, index: int = 0) -> list[tuple[str, str]]:
    """Names and arguments of the calls of one choice."""
    found: dict[int, tuple[str, str]] = {}
    for delta in reply.deltas:
        for call in delta.tool_calls if delta.index == index else []:
            name, arguments = found.get(call.index, ("", ""))
            found[call.index] = (name + (call.name or ""), arguments + call.arguments)
    return list(found.values())


@pytest.mark.parametrize("options", [{}, {"tokens_per_step": 7}, {"tokens_per_step": 1000}, {"reply": "not this"}])
def test_mock_calls_a_tool_where_it_has_to(options: dict[str, Any]) -> None:
    """With `required` it calls the first tool with the least that the schema asks for, and ends with `tool_calls`."""
    reply = reply_of(chat(tools=[WEATHER, NOW], tool_choice="required"), **options)
    assert calls(reply) == [("get_weather", '{"days":2,"unit":"c"}')]
    assert (reply.text(), reply.finish()) == ("", "tool_calls")
    assert reply.done is not None
    assert reply.done.completion_tokens == len(reply.tokens())


def test_mock_calls_the_named_tool() -> None:
    """With a name it calls that one, the same each time but for the id."""
    request = chat(tools=[WEATHER, NOW], tool_choice="required", tool_name="now")
    first, second = reply_of(request), reply_of(request)
    assert calls(first) == calls(second) == [("now", "{}")]
    assert first.tokens() == second.tokens()


def test_mock_streams_the_arguments() -> None:
    """The name comes with an id before the arguments, and these in several pieces."""
    reply = reply_of(chat(tools=[WEATHER], tool_choice="required"))
    deltas = [call for delta in reply.deltas for call in delta.tool_calls]
    assert deltas[0].name == "get_weather"
    assert deltas[0].id is not None
    assert len(deltas) > 5
    assert all(call.id is None and call.name is None for call in deltas[1:])


def test_mock_breaks_a_call_off_at_max_tokens() -> None:
    """A call that `max_tokens` cuts ends with `length`; what came of its arguments has come."""
    whole = len(reply_of(chat(tools=[WEATHER], tool_choice="required")).tokens())
    cut = chat(tools=[WEATHER], tool_choice="required", fields={"max_tokens": whole - 25})
    reply = reply_of(cut)
    assert reply.finish() == "length"
    assert '{"days":2,"unit":"c"}'.startswith(calls(reply)[0][1])
    assert len(reply.tokens()) == whole - 25


def test_mock_gives_each_choice_calls_of_its_own() -> None:
    """With `n` every choice has the call, with an id of its own."""
    reply = reply_of(chat(tools=[NOW], tool_choice="required", fields={"n": 3}))
    assert [calls(reply, index) for index in range(3)] == [[("now", "{}")]] * 3
    assert len({call.id for delta in reply.deltas for call in delta.tool_calls if call.id}) == 3


def test_mock_reply_may_hold_thoughts_text_and_calls() -> None:
    """The option `reply` is taken apart as a model's text is."""
    reply = reply_of(chat(tools=[NOW]), reply=f"<think>Hm.</think>I look.\n{CALL}")
    assert "".join(delta.reasoning for delta in reply.deltas) == "Hm."
    assert (reply.text(), calls(reply), reply.finish()) == ("I look.", [("now", '{"a": "é"}')], "tool_calls")


def test_mock_reply_may_stand_in_the_prompt() -> None:
    """`[[reply: …]]` in the last user's message goes before the option; texts without tools keep their marks."""
    assert calls(reply_of(chat(f"[[reply:{CALL}]]", tools=[NOW]), reply="x")) == [("now", '{"a": "é"}')]
    assert reply_of(chat(f"[[reply:{CALL}]]")).text() == CALL
    assert reply_of(text_request(1, "[[reply:é!]] now")).text() == "é!"
    assert reply_of(chat("[[reply:]]")).text() == ""
    assert reply_of(chat("[[reply:]]")).finish() == "stop"
    assert reply_of(chat("Hi", tools=[NOW])).text().startswith(" ")


def test_mock_reply_ends_at_stop_strings() -> None:
    """Stop strings act on set replies as on others."""
    reply = reply_of(chat("[[reply:one two three]]", fields={"stop": [" three"]}))
    assert (reply.text(), reply.finish()) == ("one two", "stop")


def test_mock_cancelled_in_a_call_gives_what_came() -> None:
    """A call that is cancelled keeps the pieces that were sent, and ends."""
    mock = Mock()
    mock.take(chat(tools=[WEATHER], tool_choice="required"))
    mock.step(60)
    mock.backend.cancel(1)
    mock.step()
    reply = mock.replies[1]
    assert reply.finish() == "cancelled"
    assert calls(reply)[0][0] == "get_weather"


# ------------------------------------------------------------------------------------------------ structured output


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar("json_object"), "{}"),
        (Grammar("json_schema", WEATHER.parameters.decode()), '{"days":2,"unit":"c"}'),
        (Grammar("choice", '["yes", "no"]'), "yes"),
    ],
)
def test_mock_answers_in_the_form_that_is_asked_for(grammar: Grammar, text: str) -> None:
    """Structured output is the smallest value that fits, whatever the option says."""
    reply = reply_of(chat(fields={"grammar": grammar}), reply="free text")
    assert (reply.text(), reply.finish()) == (text, "stop")


@pytest.mark.parametrize("kind", ["regex", "lark", "gbnf"])
def test_mock_refuses_grammars_that_it_cannot_follow(kind: Any) -> None:
    """Before anything is generated it says that it cannot."""
    backend = MockBackend()
    assert isinstance(backend, Constrains)
    with pytest.raises(RequestError, match=kind) as caught:
        backend.constraint(chat(fields={"grammar": Grammar(kind, "a")}))
    assert (caught.value.kind, caught.value.param) == ("unsupported_operation", "grammar")


@pytest.mark.parametrize(
    "source",
    [
        "nonsense",
        "false",
        '{"not": {}}',
        '{"pattern": "a"}',
        '{"$ref": "#/nowhere"}',
        '{"$ref": "x.json"}',
        '{"$ref": "#"}',
        '{"allOf": [{"$ref": "#"}]}',
        '{"minLength": 99999999}',
        '{"anyOf": [false]}',
        '{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
        '{"type": "integer", "minimum": 3, "maximum": 2}',
        '{"required": 5}',
        '{"properties": 5, "required": ["a"]}',
        '{"minimum": "a"}',
        '{"enum": 5}',
        '{"anyOf": 5}',
        '{"allOf": 5}',
        '{"required": [{}]}',
        '{"type": "x"}',
        "[" * 5000,
    ],
)
def test_mock_refuses_schemas_that_it_cannot_satisfy(source: str) -> None:
    """Contradictory, endless and unknown schemas are the request's failure, with a reason."""
    with pytest.raises(RequestError):
        minimal_instance(source)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "minLength": 3},
        {"type": "string", "format": "date-time"},
        {"type": ["integer", "null"]},
        {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "number", "maximum": -0.5},
        {"type": "integer", "exclusiveMaximum": -7, "multipleOf": 7},
        {"type": "integer", "minimum": 5, "multipleOf": 4},
        {"type": "array", "minItems": 2, "items": {"type": "boolean"}},
        {"type": "array", "minItems": 2, "prefixItems": [{"const": 1}], "items": {"type": "null"}},
        {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "integer"}]},
        {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}]},
        {"$defs": {"a/b": {"enum": [[1], 2]}}, "$ref": "#/$defs/a~1b"},
        {
            "$defs": {"node": {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}},
            "$ref": "#/$defs/node",
        },
        {"type": "object", "properties": {"a": {"type": "object", "required": ["b"]}}, "required": ["a"]},
        {"properties": {"kind": {"const": "x"}}, "required": ["kind"], "anyOf": [{"required": ["y"]}]},
    ],
)
def test_mock_instance_validates(schema: dict[str, Any]) -> None:
    """What the mock answers is valid by the schema."""
    jsonschema.validate(json.loads(minimal_instance(json.dumps(schema))), schema)


def integer(least: int, step: int) -> Schema:
    return {"type": "integer", "minimum": least, "multipleOf": step}


def closed_object(properties: dict[str, Schema], required: int) -> Schema:
    names = sorted(properties)[:required]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def array(items: Schema, least: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def combined(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        st.builds(closed_object, st.dictionaries(st.text(max_size=4), inner, max_size=4), st.integers(0, 4)),
        st.builds(array, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


LEAVES: st.SearchStrategy[Schema] = st.one_of(
    st.integers(0, 20).map(lambda least: {"type": "string", "minLength": least}),
    st.integers(-50, 50).map(lambda most: {"type": "integer", "exclusiveMaximum": most}),
    st.builds(integer, st.integers(-50, 50), st.integers(1, 9)),
    st.lists(st.text(), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "number"}, {}]),
)
SCHEMAS = st.recursive(LEAVES, combined, max_leaves=6)


@given(SCHEMAS)
def test_mock_instance_of_any_schema_validates(schema: Schema) -> None:
    """Objects, lists, numbers and alternatives in any combination."""
    jsonschema.validate(json.loads(minimal_instance(json.dumps(schema))), schema)
