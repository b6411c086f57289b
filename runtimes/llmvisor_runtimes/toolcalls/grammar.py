"""Grammars that hold a text to be calls of tools, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatPrompt, Grammar, Tool
from llmvisor_runtimes.toolcalls import harmony
from llmvisor_runtimes.toolcalls.families import FORMATS, Shape, format_of, reasoning_of, thoughts_begun
from llmvisor_runtimes.toolcalls.schemas import arguments_schema


def tool_grammar(prompt: ChatPrompt, family: str, opening: str = "") -> Grammar | None:
    """The grammar of a text that has to call a tool; None where none has to be called.

    `opening` is the end of the rendered prompt, as `make_parser` takes it: thoughts that it begins may be finished
    before the call. Marks stand in it as text, so that whoever compiles it has to take special tokens that are marks
    (see `markers`) for the texts they are written as. Raises `RequestError` for a tool whose parameters are no JSON
    Schema, and where the one to be called does not exist.
    """
    if prompt.tool_choice != "required":
        return None
    tools = [
        (number, tool)
        for number, tool in enumerate(prompt.tools)
        if prompt.tool_name is None or tool.name == prompt.tool_name
    ]
    if not tools:
        what = "tools" if prompt.tool_name is None else f"tool {prompt.tool_name}"
        raise RequestError("invalid_value", f"tool_choice asks for a call, but there is no {what}", "tool_choice")
    format = format_of(family)
    shape = FORMATS[format].shape
    lines = [*_thoughts(family, format, opening), *_calls(shape, tools, parallel=prompt.parallel_tool_calls)]
    return Grammar("tool_calls", "\n".join(lines) + "\n")


def _calls(shape: Shape, tools: Sequence[tuple[int, Tool]], *, parallel: bool) -> list[str]:
    calls = "call"
    if parallel and shape.between is not None:
        calls = f"call ({_literal(shape.between)} call){{0,{limits.tool_calls_required_max - 1}}}"
    lines = [
        f"calls: {_literal(shape.begin)} {calls} {_literal(shape.end)}",
        "call: " + " | ".join(f"call_{number}" for number, _ in tools),
    ]
    for number, tool in tools:
        name = json.dumps(tool.name)[1:-1] if '"NAME"' in shape.head else tool.name
        head = _literal(shape.head.replace("NAME", name))
        lines.append(f"call_{number}: {head} arguments_{number} {_literal(shape.tail)}")
        lines.append(f"arguments_{number}: %json {arguments_schema(tool, number)}")
    return lines


def _thoughts(family: str, format: str, opening: str) -> list[str]:
    """The rules before the calls: thoughts where the family has any."""
    if format == "harmony":
        return [f"start: ({_literal(harmony.ANALYSIS)} thoughts)? calls", _up_to(harmony.NEXT_MESSAGE)]
    if begun := thoughts_begun(opening):
        return ['start: thoughts "\\n"{0,2} calls', _up_to(begun[1])]
    marks = reasoning_of(family)
    if marks is None or opening.rstrip().endswith(marks[1]):
        return ["start: calls"]
    return [f'start: ({_literal(marks[0])} thoughts "\\n"{{0,2}})? calls', _up_to(marks[1])]


def _up_to(end: str) -> str:
    return f"thoughts[lazy]: /(.|\\n)*/ {_literal(end)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
