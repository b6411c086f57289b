"""Parsers of tool calls as tests use them: with some tools, over a text in pieces, and all that comes out joined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

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

FRAGMENTS = sorted(
    {mark for family in FORMATS for mark in markers(family)}
    | {mark for pair in REASONING.values() for mark in pair}
    | set('{}[]"\\:,;a\n')
    | {"<function=", ">", "</function>", "<parameter=", "</parameter>"}
    | {" ", '"name"', '"now"', '"arguments"', "{}", "now", "to=functions.now", "assistant", "analysis", "```", "name"}
    | {'{"name": "now", "arguments": {', '{"name": "now"', "[ARGS]"}
)
FAMILIES = [*FORMATS, "hermes:think", "deepseek:think", "mistral-args:mistral", "json:thinking"]


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
