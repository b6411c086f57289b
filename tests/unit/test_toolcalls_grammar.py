"""Grammars of required calls, compiled by llguidance itself: whatever they let through is a call that validates.

Texts are written byte by byte at random within the masks, which is worse than any model.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatPrompt, Tool
from llmvisor_runtimes.toolcalls import make_parser, tool_grammar
from llmvisor_runtimes.toolcalls.families import FORMATS

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "unit"],
}
TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["a", "b"]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["name"],
        }
    },
}
UNION = {
    "type": "object",
    "properties": {"to": {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "null"}]}},
    "required": ["to"],
}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": WEATHER, "plant-tree": TREE, "go": UNION, "now": {}}
TOOLS = [Tool(name, parameters=json.dumps(schema).encode()) for name, schema in SCHEMAS.items()]
TOKENIZER = LLTokenizer("byte")
EOS = TOKENIZER.eos_token
BYTES_MAX = 3000
THINK_OPENING = "<|im_start|>assistant\n<think>\n"


def required(**fields: Any) -> ChatPrompt:
    return ChatPrompt([], tools=fields.pop("tools", TOOLS), tool_choice="required", **fields)


def matcher_of(prompt: ChatPrompt, family: str, opening: str = "") -> LLMatcher:
    grammar = tool_grammar(prompt, family, opening)
    assert grammar is not None
    assert grammar.kind == "tool_calls"
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(grammar.source))
    assert not matcher.get_error()
    return matcher


def accepts(matcher: LLMatcher, text: str) -> bool:
    """Whether a text is whole in the grammar's eyes."""
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def written_at_random(matcher: LLMatcher, seed: int) -> str | None:
    """A text within the grammar; None where chance makes it too long."""
    chance = random.Random(seed)
    data = bytearray()
    while len(data) < BYTES_MAX:
        mask = matcher.compute_bitmask()
        if matcher.is_accepting() and (chance.random() < 0.5 or matcher.is_stopped()):
            return data.decode()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed:
            return data.decode()
        ends = [byte for byte in allowed if byte in b'"}]</']
        # Whole characters only, as a model that has learned a language writes.
        plain = [byte for byte in allowed if byte < 128] or allowed
        byte = chance.choice(ends if ends and chance.random() < 0.6 else plain)
        assert matcher.consume_token(byte)
        data.append(byte)
    return None


def calls_of(text: str, prompt: ChatPrompt, family: str, opening: str = "") -> list[tuple[str, str]]:
    """The calls in a text, which must hold nothing else but thoughts."""
    parser = make_parser(prompt, family, opening)
    assert parser is not None
    parts = [parser.feed(text), parser.finish()]
    assert "".join(part.text for part in parts) == ""
    calls = [call for part in parts for call in part.tool_calls]
    return [(call.name or "", call.arguments) for call in calls]


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_tool_grammar_lets_only_valid_calls_through(family: str, parallel: bool) -> None:
    """Whatever is written within the masks is calls of known tools, and the arguments validate."""
    prompt = required(parallel_tool_calls=parallel)
    whole = 0
    for seed in range(8):
        text = written_at_random(matcher_of(prompt, family), seed)
        if text is None:
            continue
        whole += 1
        calls = calls_of(text, prompt, family)
        assert 1 <= len(calls) <= (limits.tool_calls_required_max if parallel else 1)
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    assert whole >= 4


@pytest.mark.parametrize("family", FORMATS)
def test_tool_grammar_of_a_named_tool_lets_no_other_through(family: str) -> None:
    """With a named tool every call is of that tool."""
    prompt = required(tool_name="go")
    for seed in range(4):
        text = written_at_random(matcher_of(prompt, family), seed)
        if text is not None:
            assert {name for name, _ in calls_of(text, prompt, family)} == {"go"}


@pytest.mark.parametrize("family", FORMATS)
def test_tool_grammar_takes_the_family_s_own_form(family: str) -> None:
    """What a parser reads as a call the grammar lets through, several where the family writes several."""
    shape = FORMATS[family].shape
    call = f"{shape.head.replace('NAME', 'go')}" + '{"to": 3}' + shape.tail
    assert accepts(matcher_of(required(), family), f"{shape.begin}{call}{shape.end}")
    if shape.between is not None:
        two = f"{shape.begin}{call}{shape.between}{call}{shape.end}"
        assert accepts(matcher_of(required(), family), two)
        assert not accepts(matcher_of(required(parallel_tool_calls=False), family), two)


ANALYSED = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"
)
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("family", "opening", "text", "accepted"),
    [
        ("hermes:think", "", "<think>\nHm, a < b.\n</think>\n\n" + CALL, True),
        ("hermes:think", "", CALL, True),
        ("hermes:think", THINK_OPENING, "Hm.\n</think>\n\n" + CALL, True),
        ("hermes", THINK_OPENING, "Hm.\n</think>\n\n" + CALL, True),
        ("hermes:think", THINK_OPENING, CALL, False),
        ("hermes:think", "<think>\n\n</think>\n\n", "<think>x</think>" + CALL, False),
        ("hermes:think", "<think>\n\n</think>\n\n", CALL, True),
        ("hermes", "", "<think>x</think>" + CALL, False),
        ("hermes", "", "Sure! " + CALL, False),
        ("hermes", "", CALL[:-1], False),
        ("hermes", "", CALL.replace('": "', '":    "'), False),
        (
            "harmony",
            "<|start|>assistant",
            ANALYSED,
            True,
        ),
    ],
)
def test_tool_grammar_lets_thoughts_come_first(family: str, opening: str, text: str, accepted: bool) -> None:
    """Thoughts where the template began them or the family has them; nothing else before the call."""
    assert accepts(matcher_of(required(), family, opening), text) is accepted


def test_tool_grammar_is_for_required_calls_alone() -> None:
    """With auto and none the text is free."""
    assert tool_grammar(ChatPrompt([], tools=TOOLS), "hermes") is None
    assert tool_grammar(ChatPrompt([], tools=TOOLS, tool_choice="none"), "hermes") is None


def test_tool_grammar_without_the_tool_is_refused() -> None:
    """A choice of a tool that is not there, or of any where there are none, is the request's fault."""
    for prompt in (required(tools=[]), required(tool_name="nope")):
        with pytest.raises(RequestError, match="there is no") as caught:
            tool_grammar(prompt, "hermes")
        assert (caught.value.kind, caught.value.param) == ("invalid_value", "tool_choice")


@pytest.mark.parametrize(
    "parameters", [b"[1]", b"nonsense", b'{"type": "array"}', b"\xff", b"[" * 5000, b'{"a": ' * 5000, b'{"$ref": "#"}']
)
def test_tool_grammar_of_parameters_that_are_no_schema_is_refused(parameters: bytes) -> None:
    """The message names the tool, the parameter its place."""
    with pytest.raises(RequestError, match="f2") as caught:
        tool_grammar(required(tools=[Tool("f1"), Tool("f2", parameters=parameters)]), "hermes")
    assert caught.value.param == "tools.1.function.parameters"


@pytest.mark.parametrize("parameters", [b"", b"{}", b'{"type": "object", "properties": {}, "required": []}'])
def test_tool_grammar_of_a_tool_without_parameters_lets_an_empty_object_through(parameters: bytes) -> None:
    """A tool that takes nothing gets nothing, rather than what a model makes up."""
    prompt = required(tools=[Tool("now", parameters=parameters)])
    assert accepts(matcher_of(prompt, "hermes"), CALL)
    assert not accepts(matcher_of(prompt, "hermes"), CALL.replace("{}", '{"a": 1}'))


def test_tool_grammar_closes_objects_that_say_nothing_of_other_properties() -> None:
    """Properties that a schema does not name are never made up; one that allows them keeps them."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}},
        "required": ["a"],
    }

    def lets_through(arguments: str) -> bool:
        prompt = required(tools=[Tool("now", parameters=json.dumps(schema).encode())])
        return accepts(matcher_of(prompt, "hermes"), CALL.replace("{}", arguments))

    assert lets_through('{"a": {"b": null}}')
    assert not lets_through('{"a": {"b": null, "c": 1}}')
    assert not lets_through('{"a": {"b": null}, "c": 1}')
    schema["additionalProperties"] = True
    assert lets_through('{"a": {"b": null}, "c": 1}')


def test_tool_grammar_leaves_combined_objects_open() -> None:
    """Parts of one object are not closed against each other."""
    schema = {
        "type": "object",
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ],
    }
    prompt = required(tools=[Tool("now", parameters=json.dumps(schema).encode())])
    assert accepts(matcher_of(prompt, "hermes"), CALL.replace("{}", '{"a": null, "b": null}'))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_tool_grammar_takes_any_name(name: str) -> None:
    """A name with quotes, backslashes or any other character stands in the grammar as it is."""
    prompt = required(tools=[Tool(name)])
    text = f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {{}}}}\n</tool_call>'
    assert accepts(matcher_of(prompt, "hermes"), text)
    assert calls_of(text, prompt, "hermes") == [(name, "{}")]
