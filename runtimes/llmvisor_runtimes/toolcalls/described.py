"""Tools for models whose chat template does not know them: told in a system message, called and answered in text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from llmvisor_runtimes.protocol import ChatMessage, Tool, ToolCall
from llmvisor_runtimes.toolcalls.families import FORMATS, format_of

_KEPT = re.compile(r"""\.tool_calls\b|["']tool_calls["']""")


def keeps_calls(template_source: str) -> bool:
    """Whether a template writes earlier calls, and so also what tools gave."""
    return bool(_KEPT.search(template_source))


def with_tools_told(messages: Sequence[ChatMessage], tools: Sequence[Tool], family: str) -> list[ChatMessage]:
    """The conversation with the tools told in its system message, which is put in front where there is none."""
    told = _told(tools, family)
    first = messages[0] if messages else None
    if first is not None and first.role in ("system", "developer"):
        text = f"{first.content}\n\n{told}" if first.content else told
        return [msgspec.structs.replace(first, content=text), *messages[1:]]
    return [ChatMessage("system", told), *messages]


def with_calls_as_text(messages: Sequence[ChatMessage], family: str) -> list[ChatMessage]:
    """The conversation with calls written as the family writes them, and answers of tools as the user's turns."""
    plain: list[ChatMessage] = []
    answered = False
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            turn = ChatMessage("user", text, media=message.media)
        elif message.tool_calls:
            calls = _written(message.tool_calls, family)
            text = f"{message.content}\n{calls}" if message.content else calls
            turn = msgspec.structs.replace(message, content=text, tool_calls=[])
        else:
            turn = message
        if answered and turn.role == "user":
            # Many templates want the turns to alternate.
            turn = ChatMessage("user", f"{plain[-1].content}\n{turn.content}", media=[*plain.pop().media, *turn.media])
            answered = True
        else:
            answered = message.role == "tool"
        plain.append(turn)
    return plain


def with_system_in_user_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation with its system message in front of the user's first, for templates that know no such role."""
    if len(messages) < 2 or messages[0].role not in ("system", "developer") or messages[1].role != "user":
        return list(messages)
    system, user = messages[0], messages[1]
    text = f"{system.content}\n\n{user.content}"
    return [msgspec.structs.replace(user, content=text, media=[*system.media, *user.media]), *messages[2:]]


def tool_object(tool: Tool) -> dict[str, object]:
    """A tool as OpenAI writes it and templates take it. What is not told is empty, never absent."""
    try:
        parameters = msgspec.json.decode(tool.parameters or b"{}", type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        parameters = {}
    function: dict[str, object] = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _told(tools: Sequence[Tool], family: str) -> str:
    lines = "\n".join(msgspec.json.encode(tool_object(tool)).decode() for tool in tools)
    shape = FORMATS[format_of(family)].shape
    example = f"{shape.begin}{shape.head.replace('NAME', 'the-name')}{{the arguments}}{shape.tail}{shape.end}"
    return (
        "# Tools\n\nYou can call functions to help the user. Their signatures stand between <tools> and </tools>, one "
        f"on each line:\n<tools>\n{lines}\n</tools>\n\n"
        "To call a function, write its name and its arguments, a JSON object, in exactly this form, one for each "
        f"call:\n{example}\n\nWhat a function gives comes back between <tool_response> and </tool_response>."
    )


def _written(calls: Sequence[ToolCall], family: str) -> str:
    shape = FORMATS[format_of(family)].shape
    written = [f"{shape.head.replace('NAME', call.name)}{call.arguments or '{}'}{shape.tail}" for call in calls]
    return f"{shape.begin}{(shape.between or '').join(written)}{shape.end}"
