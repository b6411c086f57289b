"""When the parts of a tool call come: each piece with the text that brought it, and what may still become a call held
back only so long, whatever a model goes on to write."""

from __future__ import annotations

import json

import pytest
from tests.support.toolcall_parsing import PROMPT, Joined, joined, parser_of
from tests.support.toolcall_samples import hermes

from llmvisor_runtimes import limits
from llmvisor_runtimes.toolcalls import make_parser


def test_toolcalls_arguments_stream_as_they_come() -> None:
    """Name and id come before the arguments, and each piece of the arguments with the text that brought it."""
    parser = parser_of("hermes")
    assert parser.feed('<tool_call>\n{"name": "now", "argu').tool_calls == []
    (first,) = parser.feed('ments": {"a": ').tool_calls
    assert (first.index, first.name, first.arguments) == (0, "now", '{"a": ')
    assert first.id is not None
    assert first.id.startswith("call_")
    assert len(first.id) == len("call_") + 24
    (second,) = parser.feed('"x y').tool_calls
    assert second == (0, None, None, '"x y') or (second.index, second.arguments) == (0, '"x y')
    assert parser.feed("").tool_calls == []


def test_toolcalls_text_streams_as_it_comes() -> None:
    """Only what may still become a mark, and white space at the end, waits."""
    parser = parser_of("hermes:think")
    assert parser.feed("Hel").text == "Hel"
    assert parser.feed("lo <to").text == "lo"
    assert parser.feed("p> ").text == " <top>"
    assert parser.finish().text == " "


def test_toolcalls_json_answer_is_not_held_back() -> None:
    """An answer that is JSON, but no call, streams from its first foreign member on."""
    parser = parser_of("llama3")
    assert parser.feed('{"city": ').text == '{"city":'
    assert parser.feed('"Paris"').text == ' "Paris"'


def test_toolcalls_ids_may_be_injected() -> None:
    """Whoever makes a parser may make the ids."""
    ids = iter("ab")
    parser = make_parser(PROMPT, "hermes", "", lambda: next(ids))
    assert parser is not None
    parts = parser.feed(hermes("now", "{}") + hermes("now", "{}"))
    assert [call.id for call in parts.tool_calls] == ["a", "b"]


# --------------------------------------------------------------------------------------------------------------- bounds


def test_toolcalls_function_in_a_function_is_no_call() -> None:
    """OpenAI's form is nested once; a model that goes on nesting writes text, and the stack stays as it is."""
    text = "<tool_call>" + '{"function": ' * 5000
    assert joined(parser_of("hermes"), [text]) == Joined(text, "", [])
    twice = '<tool_call>{"function": {"function": {"name": "now", "arguments": {}}}}</tool_call>'
    assert joined(parser_of("hermes"), [twice]).calls == []


@pytest.mark.parametrize("size", [7, 10**6])
def test_toolcalls_text_that_may_be_a_call_is_held_back_only_so_long(size: int) -> None:
    """An endless name, or endless white space, comes out as text, whole or in pieces."""
    for begin, filling in (('<tool_call>{"name": "', "x"), ("", " "), ('{"arguments": [', "1,"), ("<tool_call>", " ")):
        text = begin + filling * (2 * limits.tool_call_held_chars_max // len(filling))
        parser = parser_of("hermes:think")
        found = joined(parser, [text[start : start + size] for start in range(0, len(text), size)])
        assert found == Joined(text, "", [])


def test_toolcalls_long_arguments_are_streamed_whole() -> None:
    """Arguments may be longer than what is ever held back."""
    arguments = json.dumps({"text": "é\\" * limits.tool_call_held_chars_max}, ensure_ascii=False)
    text = hermes("now", arguments)
    pieces = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    assert joined(parser_of("hermes"), pieces) == Joined("", "", [("now", arguments)])


def test_toolcalls_deeply_nested_arguments_do_no_harm() -> None:
    """Arguments are scanned, not built."""
    arguments = '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"
    assert joined(parser_of("hermes"), [hermes("now", arguments)]).calls == [("now", arguments)]
    as_text = '{"arguments": ' + "[" * 50_000 + '], "name": "now"}'
    assert joined(parser_of("hermes"), [as_text]).text == as_text
