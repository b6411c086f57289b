"""What models write, taken apart: texts as the families really write them, cut at every point.

Each sample holds what comes out of it. However its text is cut, the streamed parts have to join to exactly that. Where
there is nothing to take apart there is no parser, and what is no call stays as it was written.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.toolcall_parsing import FAMILIES, FRAGMENTS, TOOLS, Joined, cut, joined, parser_of
from tests.support.toolcall_samples import SAMPLES, hermes

from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt
from llmvisor_runtimes.toolcalls import make_parser
from llmvisor_runtimes.toolcalls.families import FORMATS

FREE = ChatPrompt([ChatMessage("user", "?")])


@pytest.mark.parametrize("name", SAMPLES)
def test_toolcalls_sample_is_taken_apart(name: str) -> None:
    """Text, reasoning and calls of a family's text, given whole."""
    sample = SAMPLES[name]
    found = joined(parser_of(sample.family, sample.opening), [sample.written])
    assert found == Joined(sample.text, sample.reasoning, list(sample.calls))


@pytest.mark.parametrize("name", SAMPLES)
def test_toolcalls_sample_is_the_same_however_it_is_cut(name: str) -> None:
    """Cut in two at every point, and letter by letter: the parts join to the same."""
    sample = SAMPLES[name]
    expected = Joined(sample.text, sample.reasoning, list(sample.calls))
    for place in range(len(sample.written) + 1):
        pieces = [sample.written[:place], sample.written[place:]]
        assert joined(parser_of(sample.family, sample.opening), pieces) == expected, pieces
    assert joined(parser_of(sample.family, sample.opening), list(sample.written)) == expected


@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.integers(min_value=0), max_size=12))
def test_toolcalls_sample_is_the_same_cut_anywhere(name: str, places: list[int]) -> None:
    """Cut into any pieces, empty ones too."""
    sample = SAMPLES[name]
    found = joined(parser_of(sample.family, sample.opening), cut(sample.written, places))
    assert found == Joined(sample.text, sample.reasoning, list(sample.calls))


@given(
    st.sampled_from(FAMILIES),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.integers(min_value=0), max_size=6),
    st.sampled_from(["", "<think>\n", "<|start|>assistant", "<|start|>assistant<|channel|>"]),
)
def test_toolcalls_any_text_is_the_same_cut_anywhere(family: str, text: str, places: list[int], opening: str) -> None:
    """Marks, braces and quotes in any order: no text makes a parser fail, and cutting changes nothing."""
    whole = joined(parser_of(family, opening), [text])
    assert joined(parser_of(family, opening), cut(text, places)) == whole
    assert joined(parser_of(family, opening), list(text)) == whole


@given(st.sampled_from(sorted(set(FORMATS) - {"harmony"})), st.text(alphabet='ab <>|`[]{}":,_\n', max_size=60))
def test_toolcalls_text_without_calls_loses_nothing(family: str, text: str) -> None:
    """What is no call comes out as it was written."""
    parser = parser_of(family)
    found = joined(parser, [text])
    assert parser.called or found.text == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(set(FORMATS) - {"gemma"})),
    st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=3), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(min_value=0), max_size=8),
)
def test_toolcalls_arguments_come_out_as_they_were_written(
    family: str, values: list[dict[str, object]], ascii: bool, places: list[int]
) -> None:
    """Any JSON object as arguments, one call or several, is given out letter for letter."""
    shape = FORMATS[family].shape
    if shape.between is None:
        values = values[:1]
    written = [json.dumps(value, ensure_ascii=ascii) for value in values]
    calls = [f"{shape.head.replace('NAME', 'now')}{arguments}{shape.tail}" for arguments in written]
    text = f"{shape.begin}{(shape.between or '').join(calls)}{shape.end}"
    found = joined(parser_of(family), cut(text, places))
    assert found == Joined("", "", [("now", arguments) for arguments in written])


# --------------------------------------------------------------------------------------------------- what is not parsed


def test_toolcalls_without_tools_only_thoughts_are_taken_apart() -> None:
    """Without tools a mark is text, white space stays as it is, and only thoughts are split off."""
    parser = parser_of("hermes:think", prompt=FREE)
    call = hermes("now", "{}")
    assert joined(parser, [f"<think>a</think>\n {call}\n"]) == Joined(f"{call}\n", "a", [])


def test_toolcalls_choice_none_never_gives_calls() -> None:
    """With `tool_choice` none what looks like a call is text."""
    prompt = ChatPrompt([], tools=TOOLS, tool_choice="none")
    call = hermes("now", "{}")
    assert make_parser(prompt, "hermes", "") is None
    assert joined(parser_of("hermes:think", prompt=prompt), [call]) == Joined(call, "", [])
    harmony = '<|channel|>commentary to=functions.now<|message|>{"a": 1}<|call|>'
    assert joined(parser_of("harmony", prompt=prompt), [harmony]) == Joined('{"a": 1}', "", [])


@pytest.mark.parametrize("family", ["hermes", "llama3", "json", "mistral"])
def test_toolcalls_without_tools_and_thoughts_there_is_no_parser(family: str) -> None:
    """Where nothing can need parsing there is no parser; thoughts that the template began need one."""
    assert make_parser(FREE, family, "<|im_start|>assistant\n") is None
    assert make_parser(FREE, family, "<|im_start|>assistant\n<think>\n") is not None


def test_toolcalls_one_at_a_time_where_parallel_calls_are_off() -> None:
    """With `parallel_tool_calls` off only the first call comes."""
    prompt = ChatPrompt([], tools=TOOLS, parallel_tool_calls=False)
    text = hermes("now", '{"a": 1}') + hermes("now", "{}")
    assert joined(parser_of("hermes", prompt=prompt), [text]) == Joined("", "", [("now", '{"a": 1}')])
