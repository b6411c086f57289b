"""What models write, taken apart: texts as the families really write them, cut at every point.

Each sample holds what comes out of it. However its text is cut, the streamed parts have to join to exactly that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor_runtimes import limits
from llmvisor_runtimes.output import OutputParser
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Tool
from llmvisor_runtimes.toolcalls import make_parser, markers
from llmvisor_runtimes.toolcalls.families import FORMATS, REASONING

TOOLS = [
    Tool("get_weather", "The weather of a place.", b'{"properties": {"city": {"type": "string"}}}'),
    Tool("now"),
    Tool("files.read"),
]
PROMPT = ChatPrompt([ChatMessage("user", "?")], tools=TOOLS)
FREE = ChatPrompt([ChatMessage("user", "?")])
PARIS = '{"city": "Paris"}'
NESTED = '{"a": {"b": [1, {"c": "}{][\\"\\\\"}], "d": "</tool_call> \\u00e9 é ｜"}, "e": -1.5e3, "f": null}'


class Sample(NamedTuple):
    family: str
    written: str
    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    reasoning: str = ""
    opening: str = ""


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def deepseek(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


ANALYSIS = "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant"
SAMPLES = {
    # -- hermes
    "hermes": Sample("hermes", hermes("get_weather", PARIS), "", [("get_weather", PARIS)]),
    "hermes nested": Sample("hermes", hermes("get_weather", NESTED), "", [("get_weather", NESTED)]),
    "hermes parallel": Sample(
        "hermes",
        hermes("get_weather", PARIS) + "\n" + hermes("now", "{}"),
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "hermes text before": Sample(
        "hermes", "I'll look.\n\n" + hermes("now", "{}"), "I'll look.", [("now", "{}")]
    ),
    "hermes text after": Sample("hermes", hermes("now", "{}") + "\nThere.", "There.", [("now", "{}")]),
    "hermes arguments first": Sample(
        "hermes", '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "", [("now", '{"a": 1}')]
    ),
    "hermes on one line": Sample(
        "hermes", '<tool_call>{"name":"now","arguments":{"a":1}}</tool_call>', "", [("now", '{"a":1}')]
    ),
    "hermes escaped name": Sample("hermes", hermes("n\\u006fw", "{}"), "", [("now", "{}")]),
    "hermes more members": Sample(
        "hermes",
        '<tool_call>{"id": 7, "name": "now", "arguments": {}, "x": [1, "}"]}</tool_call>',
        "",
        [("now", "{}")],
    ),
    "hermes without arguments": Sample("hermes", '<tool_call>\n{"name": "now"}\n</tool_call>', "", [("now", "{}")]),
    "hermes null arguments": Sample("hermes", hermes("now", "null"), "", [("now", "{}")]),
    "hermes arguments as text": Sample("hermes", hermes("now", '"{\\"a\\": 1}"'), "", [("now", '{"a": 1}')]),
    "hermes OpenAI's form": Sample(
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}</tool_call>',
        "",
        [("now", '{"a": 1}')],
    ),
    "hermes unknown tool": Sample("hermes", hermes("nope", "{}"), "", [("nope", "{}")]),
    "hermes without its end": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}}', "", [("now", '{"a": 1}')]
    ),
    "hermes cut in its end": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool', "", [("now", '{"a": 1}')]
    ),
    "hermes cut in arguments": Sample(
        "hermes", '<tool_call>\n{"name": "now", "arguments": {"a": "x\\', "", [("now", '{"a": "x\\')]
    ),
    "hermes cut in name": Sample("hermes", 'a <tool_call>\n{"name": "no', 'a <tool_call>\n{"name": "no'),
    "hermes cut in mark": Sample("hermes", "a <tool_ca", "a <tool_ca"),
    "hermes malformed": Sample(
        "hermes", "a <tool_call>\n{name: now}\n</tool_call> b ", "a <tool_call>\n{name: now}\n</tool_call> b "
    ),
    "hermes arguments no object": Sample("hermes", hermes("now", "[1]"), hermes("now", "[1]")),
    "hermes empty name": Sample("hermes", hermes("", "{}"), hermes("", "{}")),
    "hermes malformed, then a call": Sample(
        "hermes", "<tool_call>oops</tool_call>" + hermes("now", "{}"), "<tool_call>oops</tool_call>", [("now", "{}")]
    ),
    "hermes without marks": Sample(
        "hermes", f'{{"name": "get_weather", "arguments": {PARIS}}}', "", [("get_weather", PARIS)]
    ),
    "hermes JSON that is no call": Sample("hermes", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}'),
    "hermes XML text": Sample("hermes", "if a < b: <b>x</b>\n  <tool>", "if a < b: <b>x</b>\n  <tool>"),
    "hermes text alone": Sample("hermes", "\n Hello \n world \n", "\n Hello \n world \n"),
    "hermes tagged": Sample(
        "hermes",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n\n</parameter>\n"
        "<parameter=days>\n[1, 2]\n</parameter>\n"
        "<parameter=unit>\nc {\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        [("get_weather", '{"city": "12\\n", "days": [1, 2], "unit": "c {"}'), ("now", "{}")],
    ),
    "hermes tagged alone": Sample(
        "hermes", "I look.\n<function=now>\n</function>", "I look.", [("now", "{}")]
    ),
    "hermes tagged cut": Sample(
        "hermes", "<function=now>\n<parameter=a>\n1", "<function=now>\n<parameter=a>\n1"
    ),
    "hermes tagged unknown": Sample("hermes", "<function=nope></function>", "<function=nope></function>"),
    "llama3 tagged": Sample("llama3", '<function=now>{"a": 1}</function>', "", [("now", '{"a": 1}')]),
    # -- reasoning
    "think": Sample("hermes:think", "<think>\nHm, 1 < 2.\n</think>\n\nYes.", "Yes.", [], "Hm, 1 < 2."),
    "think and call": Sample(
        "hermes:think", "<think>a</think>\n" + hermes("now", "{}"), "", [("now", "{}")], "a"
    ),
    "think begun by the template": Sample(
        "hermes:think", "Hm.\n</think>\n\nYes.", "Yes.", [], "Hm.", "<|im_start|>assistant\n<think>\n"
    ),
    "think begun twice": Sample(
        "hermes:think", "<think>\nHm.</think>Yes.", "Yes.", [], "Hm.", "<|im_start|>assistant\n<think>\n"
    ),
    "think cut": Sample("hermes:think", "<think>\nHm </thi", "", [], "Hm </thi"),
    "think later is text": Sample("hermes:think", "Use <think> so.</think>", "Use <think> so.</think>"),
    "think told away": Sample("hermes:think", "Yes.", "Yes.", [], "", "<think>\n\n</think>\n\n"),
    "think call mentioned": Sample(
        "hermes:think", "<think>I write <tool_call>{}.</think>No.", "No.", [], "I write <tool_call>{}."
    ),
    "cohere thoughts": Sample(
        "cohere:cohere",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n"
        f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {PARIS}}},\n'
        '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        "",
        [("get_weather", PARIS), ("now", "{}")],
        "Hm.",
    ),
    # -- llama 3
    "llama3": Sample("llama3", f'{{"name": "get_weather", "parameters": {PARIS}}}', "", [("get_weather", PARIS)]),
    "llama3 typed": Sample(
        "llama3", '{"type": "function", "name": "now", "parameters": {"a": "1"}}', "", [("now", '{"a": "1"}')]
    ),
    "llama3 python tag": Sample(
        "llama3", f'<|python_tag|>{{"name": "get_weather", "parameters": {NESTED}}}', "", [("get_weather", NESTED)]
    ),
    "llama3 several": Sample(
        "llama3",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "llama3 several lines": Sample(
        "llama3",
        '{"name": "now", "parameters": {}}\n{"name": "now", "parameters": {"a": 1}}',
        "",
        [("now", "{}"), ("now", '{"a": 1}')],
    ),
    "llama3 unknown tool": Sample(
        "llama3", '{"name": "Ada", "parameters": {"x": 1}}', '{"name": "Ada", "parameters": {"x": 1}}'
    ),
    "llama3 code": Sample("llama3", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    "llama3 JSON answer": Sample("llama3", '{"answer": [1, 2]} is it', '{"answer": [1, 2]} is it'),
    # -- mistral
    "mistral list": Sample(
        "mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}]', "", [("get_weather", PARIS)]
    ),
    "mistral several": Sample(
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {NESTED}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("get_weather", NESTED), ("now", "{}")],
    ),
    "mistral cut": Sample(
        "mistral", '[TOOL_CALLS][{"name": "now", "arguments": {"a": 1}}, {"na', ', {"na', [("now", '{"a": 1}')]
    ),
    "mistral args": Sample("mistral-args", f"[TOOL_CALLS]get_weather[ARGS]{PARIS}", "", [("get_weather", PARIS)]),
    "mistral args several": Sample(
        "mistral-args",
        f"Let me see.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{{}}",
        "Let me see.",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "mistral call id": Sample("mistral-args", "[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}", "", [("now", "{}")]),
    "mistral without [ARGS]": Sample("mistral-args", '[TOOL_CALLS]now{"a": 1}', "", [("now", '{"a": 1}')]),
    "mistral thoughts": Sample(
        "mistral-args:mistral", "[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}", "", [("now", "{}")], "Hm."
    ),
    "mistral malformed": Sample("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing"),
    # -- deepseek
    "deepseek": Sample(
        "deepseek-fenced",
        "<｜tool▁calls▁begin｜>"
        + deepseek("get_weather", PARIS)
        + "\n"
        + deepseek("now", NESTED)
        + "<｜tool▁calls▁end｜>",
        "",
        [("get_weather", PARIS), ("now", NESTED)],
    ),
    "deepseek 3.1": Sample(
        "deepseek",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        f"{PARIS}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Let me see.",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "deepseek thoughts": Sample(
        "deepseek-fenced:think",
        "Hm.</think>\n<｜tool▁calls▁begin｜>" + deepseek("now", "{}"),
        "",
        [("now", "{}")],
        "Hm.",
        "<｜Assistant｜><think>\n",
    ),
    "deepseek cut": Sample(
        "deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{", "", [("now", "{")]
    ),
    "deepseek malformed": Sample(
        "deepseek", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"
    ),
    # -- phi, granite
    "phi": Sample(
        "phi",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {PARIS}}}]<|/tool_call|>',
        "",
        [("get_weather", PARIS)],
    ),
    "granite": Sample("granite", '<|tool_call|>[{"name": "now", "arguments": {}}]', "", [("now", "{}")]),
    # -- gemma
    "gemma python": Sample(
        "gemma",
        "```tool_code\nget_weather(city='Paris', days=[1, None], deep={'a': True})\n```",
        "",
        [("get_weather", '{"city": "Paris", "days": [1, null], "deep": {"a": true}}')],
    ),
    "gemma printed": Sample(
        "gemma", "Sure:\n```tool_code\nprint(now())\nfiles.read(path=\"a\")\n```\n", "Sure:",
        [("now", "{}"), ("files.read", '{"path": "a"}')],
    ),
    "gemma code": Sample("gemma", "```tool_code\nimport os\n```", "```tool_code\nimport os\n```"),
    "gemma JSON": Sample(
        "gemma",
        f'```json\n{{"name": "get_weather", "parameters": {PARIS}}}\n```',
        "",
        [("get_weather", PARIS)],
    ),
    "gemma JSON answer": Sample("gemma", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```'),
    # -- harmony
    "harmony call": Sample(
        "harmony",
        ANALYSIS + f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}<|call|>",
        "",
        [("get_weather", PARIS)],
        "The user asks.",
        "<|start|>assistant",
    ),
    "harmony recipient in role": Sample(
        "harmony",
        ANALYSIS + f" to=functions.get_weather<|channel|>commentary json<|message|>{NESTED}",
        "",
        [("get_weather", NESTED)],
        "The user asks.",
        "<|start|>assistant",
    ),
    "harmony final": Sample(
        "harmony", ANALYSIS + "<|channel|>final<|message|>Hello!<|return|>", "Hello!", [], "The user asks."
    ),
    "harmony preamble": Sample(
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.now"
        " <|constrain|>json<|message|>{}<|call|>",
        "I look.",
        [("now", "{}")],
    ),
    "harmony two texts": Sample(
        "harmony",
        "<|channel|>commentary<|message|>I look. <|end|><|start|>assistant<|channel|>final<|message|>\nHi<|return|>",
        "I look.\n\nHi",
    ),
    "harmony begun": Sample(
        "harmony", "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi", "Hi", [], "Hm.",
        "<|start|>assistant<|channel|>analysis<|message|>",
    ),
    "harmony begun header": Sample(
        "harmony", "final<|message|>Hi", "Hi", [], "", "<|start|>assistant<|channel|>"
    ),
    "harmony plain": Sample("harmony", "Just text < so.", "Just text < so."),
    "harmony cut header": Sample("harmony", ANALYSIS + "<|channel|>fin", "", [], "The user asks."),
    "harmony cut arguments": Sample(
        "harmony", "<|channel|>commentary to=functions.now<|message|>{\"a", "", [("now", '{"a')]
    ),
    # -- json
    "json": Sample("json", f'{{"name": "get_weather", "arguments": {PARIS}}}', "", [("get_weather", PARIS)]),
    "json list": Sample(
        "json",
        f'[{{"name": "get_weather", "arguments": {PARIS}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("get_weather", PARIS), ("now", "{}")],
    ),
    "json fenced": Sample("json", '```json\n{"name": "now", "arguments": {}}\n```', "", [("now", "{}")]),
    "json text": Sample("json", "[1, 2] and {3}", "[1, 2] and {3}"),
}  # fmt: skip


class Joined(NamedTuple):
    text: str
    reasoning: str
    calls: list[tuple[str, str]]


def parser_of(family: str, opening: str = "", prompt: ChatPrompt = PROMPT) -> OutputParser:
    parser = make_parser(prompt, family, opening)
    assert parser is not None
    return parser


def joined(parser: OutputParser, pieces: Sequence[str]) -> Joined:
    """All parts of a text that comes in pieces. Each call's first delta brings its name and id, the others neither."""
    parts = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    names: list[str] = []
    ids: list[str] = []
    arguments: list[str] = []
    for delta in [delta for part in parts for delta in part.tool_calls]:
        if delta.index == len(names):
            assert delta.name
            assert delta.id
            names.append(delta.name)
            ids.append(delta.id)
            arguments.append("")
        else:
            assert (delta.index, delta.name, delta.id) == (len(names) - 1, None, None)
        arguments[delta.index] += delta.arguments
    assert len(set(ids)) == len(ids)
    assert parser.called is bool(names)
    text, reasoning = "".join(part.text for part in parts), "".join(part.reasoning for part in parts)
    return Joined(text, reasoning, list(zip(names, arguments, strict=True)))


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


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


FRAGMENTS = sorted(
    {mark for family in FORMATS for mark in markers(family)}
    | {mark for pair in REASONING.values() for mark in pair}
    | set('{}[]"\\:,;a\n')
    | {"<function=", ">", "</function>", "<parameter=", "</parameter>"}
    | {" ", '"name"', '"now"', '"arguments"', "{}", "now", "to=functions.now", "assistant", "analysis", "```", "name"}
    | {'{"name": "now", "arguments": {', '{"name": "now"', "[ARGS]"}
)
FAMILIES = [*FORMATS, "hermes:think", "deepseek:think", "mistral-args:mistral", "json:thinking"]


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


# ------------------------------------------------------------------------------------------------------- streaming


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


# ------------------------------------------------------------------------------------------------ what is not parsed


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


# ------------------------------------------------------------------------------------------------------ surrogates


HALVES = ["\\ud800", "\\udc00", "\\uD83D", "\\uDE42", "\\u0041", "\\\\ud800", '\\\\\\"']
CALLS_WITH_HALVES = [
    '<tool_call>{"name": "nowHALF", "arguments": {"a": "HALF"}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"HALF\\"}"}</tool_call>',
    '<function=now><parameter=a>"HALF"</parameter><parameter=HALF>HALF</parameter></function>',
    '```tool_code\nnow(a="HALF")\n```',
    '[TOOL_CALLS]now[ARGS]{"a": "HALF"}',
    "<think>HALF</think>HALF",
    '<|channel|>commentary to=functions.now<|message|>{"a": "HALF"}<|call|>',
]


@given(
    st.sampled_from(FAMILIES),
    st.lists(
        st.one_of(
            st.sampled_from([*FRAGMENTS, *HALVES]),
            st.tuples(st.sampled_from(CALLS_WITH_HALVES), st.sampled_from(HALVES)).map(
                lambda pair: pair[0].replace("HALF", pair[1])
            ),
        ),
        max_size=6,
    ).map("".join),
    st.lists(st.integers(min_value=0), max_size=6),
)
def test_toolcalls_parts_of_any_text_are_utf8(family: str, text: str, places: list[int]) -> None:
    """Whatever halves of surrogate pairs a model escapes: names, arguments, text and thoughts can be sent."""
    parser = parser_of(family)
    for parts in [*map(parser.feed, cut(text, places)), parser.finish()]:
        names = [call.name or "" for call in parts.tool_calls]
        arguments = [call.arguments for call in parts.tool_calls]
        said = "".join([parts.text, parts.reasoning, *names, *arguments])
        assert said.encode("utf-8", "replace").decode() == said


@pytest.mark.parametrize(
    ("family", "written", "call"),
    [
        ("hermes", '<tool_call>{"name": "\\ud800x", "arguments": {}}</tool_call>', ("\ufffdx", "{}")),
        (
            "hermes",
            '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
            ("now", '{"a": "\ufffd"}'),
        ),
        ("hermes", '<function=now><parameter=a>"\\ud800"</parameter></function>', ("now", '{"a": "\ufffd"}')),
        ("gemma", '```tool_code\nnow(a="\\ud800")\n```', ("now", '{"a": "\ufffd"}')),
        ("gemma", '```tool_code\nnow(a="\\ud83d\\ude42")\n```', ("now", '{"a": "\U0001f642"}')),
    ],
)
def test_toolcalls_half_a_surrogate_pair_is_replaced(family: str, written: str, call: tuple[str, str]) -> None:
    """What UTF-8 has no form for becomes U+FFFD; two halves become the character they stand for."""
    assert joined(parser_of(family), [written]).calls == [call]


# --------------------------------------------------------------------------------------------------------- bounds


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
