"""The families: which marks stand around the calls and the thoughts, and who reads what lies between."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmvisor_runtimes.toolcalls import deepseek, gemma, harmony, mistral, tagged_call
from llmvisor_runtimes.toolcalls.json_call import read_several
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Reader, Steps

Read = Callable[[Reader, Found], Steps[None]]
"""Reads the calls that follow a mark, which has been taken. Raises `Malformed`."""


class Shape(NamedTuple):
    """What calls look like when a grammar writes them. `NAME` stands for the tool's name."""

    head: str
    tail: str
    between: str | None = None
    """Stands between two calls; None where the family makes one at a time."""
    begin: str = ""
    end: str = ""


class Format(NamedTuple):
    """How calls are written."""

    marks: Mapping[str, Read]
    """What begins calls. Harmony has none: `harmony.read` does it all."""
    shape: Shape
    told_by: tuple[tuple[str, ...], ...] = ()
    """A template that has all texts of one of these is of this family."""
    further_marks: tuple[str, ...] = ()
    """Beside those that begin calls."""


def _between_marks(close: str) -> Read:
    """JSON calls, or a tagged one, up to a closing mark, which a model may leave out."""

    def read(reader: Reader, found: Found) -> Steps[None]:
        yield from reader.skip_space()
        if (yield from reader.accept(tagged_call.MARK)):
            yield from tagged_call.read(reader, found)
        else:
            yield from read_several(reader, found, known=False)
        if close and (yield from reader.close(close)):
            reader.commit()

    return read


_DEEPSEEK_MARKS = {deepseek.CALLS_BEGIN: deepseek.read_calls, deepseek.CALL_BEGIN: deepseek.read_call}
_JSON_HEAD = '{"name": "NAME", "arguments": '

FORMATS: dict[str, Format] = {
    "harmony": Format(
        {},
        Shape("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>", ""),
        (("<|channel|>", "<|message|>"),),
        harmony.MARKS,
    ),
    "mistral-args": Format(
        {mistral.MARK: mistral.read},
        Shape("[TOOL_CALLS]NAME[ARGS]", "", ""),
        ((mistral.MARK, "[ARGS]"),),
        mistral.FURTHER_MARKS,
    ),
    "mistral": Format(
        {mistral.MARK: mistral.read},
        Shape(_JSON_HEAD, "}", ", ", "[TOOL_CALLS][", "]"),
        ((mistral.MARK,),),
        mistral.FURTHER_MARKS,
    ),
    "deepseek-fenced": Format(
        _DEEPSEEK_MARKS,
        Shape(
            f"{deepseek.CALL_BEGIN}function{deepseek.SEPARATOR}NAME\n```json\n",
            f"\n```{deepseek.CALL_END}",
            "\n",
            deepseek.CALLS_BEGIN,
            deepseek.CALLS_END,
        ),
        ((deepseek.CALL_BEGIN, "```json"),),
        deepseek.FURTHER_MARKS,
    ),
    "deepseek": Format(
        _DEEPSEEK_MARKS,
        Shape(
            f"{deepseek.CALL_BEGIN}NAME{deepseek.SEPARATOR}",
            deepseek.CALL_END,
            "",
            deepseek.CALLS_BEGIN,
            deepseek.CALLS_END,
        ),
        ((deepseek.CALL_BEGIN,), (deepseek.CALLS_BEGIN,)),
        deepseek.FURTHER_MARKS,
    ),
    "hermes": Format(
        {"<tool_call>": _between_marks("</tool_call>"), tagged_call.MARK: tagged_call.read},
        Shape(f"<tool_call>\n{_JSON_HEAD}", "}\n</tool_call>", "\n"),
        (("<tool_call>",),),
        ("</tool_call>",),
    ),
    "phi": Format(
        {"<|tool_call|>": _between_marks("<|/tool_call|>")},
        Shape(_JSON_HEAD, "}", ", ", "<|tool_call|>[", "]<|/tool_call|>"),
        (("<|/tool_call|>",),),
        ("<|/tool_call|>",),
    ),
    "granite": Format(
        {"<|tool_call|>": _between_marks("")},
        Shape(_JSON_HEAD, "}", ", ", "<|tool_call|>[", "]"),
        (("<|tool_call|>",),),
    ),
    "cohere": Format(
        {"<|START_ACTION|>": _between_marks("<|END_ACTION|>")},
        Shape(
            '{"tool_call_id": "0", "tool_name": "NAME", "parameters": ',
            "}",
            ",\n",
            "<|START_ACTION|>[\n",
            "\n]<|END_ACTION|>",
        ),
        (("<|START_ACTION|>",),),
        ("<|END_ACTION|>",),
    ),
    "llama3": Format(
        {"<|python_tag|>": _between_marks(""), tagged_call.MARK: tagged_call.read},
        # Its templates refuse a turn with several calls.
        Shape('{"name": "NAME", "parameters": ', "}"),
        (("<|python_tag|>",), ("Environment: ipython",)),
    ),
    "gemma": Format(
        {"```tool_code": gemma.read, "```json": gemma.read_fenced_json},
        Shape(f"```json\n{_JSON_HEAD}", "}\n```", "\n"),
        (("tool_code",),),
    ),
    "json": Format({"```json": gemma.read_fenced_json}, Shape(_JSON_HEAD, "}", "\n")),
}
"""In the order in which a template is asked for them. In each, JSON calls may also begin a text without any mark."""

REASONING: dict[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "thinking": ("<thinking>", "</thinking>"),
    "seed": ("<seed:think>", "</seed:think>"),
}
"""What stands around the thoughts, which come before everything else."""

_SHOWN = re.compile(r"\bin\s+tools\b|[(,=]\s*tools\b|\btools\s*[|\[]|\{\{-?\s*tools\b")


def family_of(template_source: str) -> str:
    """The family of a model by its chat template, such as `hermes`, `llama3` or `hermes:think`.

    A template that knows no tools is of the family `hermes`: the tools are described to the model in that form. One
    that knows them, but shows none of the marks here, is of the family `json`.
    """
    format = next((name for name, entry in FORMATS.items() if _told_by(entry, template_source)), None)
    if format is None:
        format = "json" if shows_tools(template_source) else "hermes"
    if format == "harmony":
        return format
    for name, (begin, end) in REASONING.items():
        if begin in template_source or end in template_source:
            return f"{format}:{name}"
    return format


def shows_tools(template_source: str) -> bool:
    """Whether a template writes the tools there are into the prompt."""
    return bool(_SHOWN.search(template_source))


def format_of(family: str) -> str:
    """The format of a family's calls; an unknown one is `json`."""
    name = family.partition(":")[0]
    return name if name in FORMATS else "json"


def reasoning_of(family: str) -> tuple[str, str] | None:
    """What stands around a family's thoughts, where its template tells."""
    return REASONING.get(family.partition(":")[2])


def thoughts_begun(opening: str) -> tuple[str, str] | None:
    """What stands around the thoughts, where the prompt ends with their beginning."""
    end = opening.rstrip()
    return next((pair for pair in REASONING.values() if end.endswith(pair[0])), None)


def markers(family: str) -> frozenset[str]:
    """Marks that a parser has to see.

    Where they are special tokens of a vocabulary, which most engines leave out of the text, they have to be written.
    """
    entry = FORMATS[format_of(family)]
    return frozenset({*entry.marks, *entry.further_marks, *(reasoning_of(family) or ())})


def _told_by(entry: Format, template_source: str) -> bool:
    return any(all(text in template_source for text in texts) for texts in entry.told_by)
