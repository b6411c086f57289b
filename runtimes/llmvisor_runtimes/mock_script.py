"""Replies of the mock that are set: calls of tools, instances of a schema, and texts that a client's author wants.

The text after `[[reply:` and up to `]]` in the last user's message is the reply; the option `reply` is the one for all
other requests. A call that is required, and a grammar, go before both.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.mock_instance import PARAM, minimal_instance
from llmvisor_runtimes.output import OutputParser
from llmvisor_runtimes.protocol import ChatPrompt, Generate, Grammar, TextPrompt
from llmvisor_runtimes.toolcalls import call_id, make_parser

FAMILY = "hermes:think"
_IN_PROMPT = re.compile(r"\[\[reply:(.*?)\]\]", re.DOTALL)


class ScriptedReply:
    """A set reply. Its tokens are its bytes, as those of a prompt."""

    first_number = 0

    def __init__(self, text: str) -> None:
        self._data = text.encode("utf-8", "replace")

    def __len__(self) -> int:
        return len(self._data)

    def piece(self, number: int) -> tuple[bytes, int]:
        """The bytes and the id of a token."""
        return self._data[number : number + 1], self._data[number]


def script(request: Generate, reply: str | None) -> str | None:
    """The set reply of a request; None where the mock makes one up. `reply` is the option's.

    Raises `RequestError` for a grammar that the mock does not know.
    """
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt) and prompt.tool_choice == "required":
        return _call(prompt)
    if request.grammar is not None:
        return _instance(request.grammar)
    own = _IN_PROMPT.search(_asked(prompt)) if isinstance(prompt, ChatPrompt | TextPrompt) else None
    return own[1] if own else reply


def script_parser(request: Generate, new_id: Callable[[], str] = call_id) -> OutputParser | None:
    """Takes the set reply of a conversation apart; `new_id` gives the ids of its calls."""
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt) or (request.grammar is not None and prompt.tool_choice != "required"):
        return None
    return make_parser(prompt, FAMILY, "", new_id)


def _asked(prompt: ChatPrompt | TextPrompt) -> str:
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return next((message.content for message in reversed(prompt.messages) if message.role == "user"), "")


def _call(prompt: ChatPrompt) -> str:
    tool = next((tool for tool in prompt.tools if prompt.tool_name in (None, tool.name)), None)
    if tool is None:
        raise RequestError("invalid_value", "tool_choice asks for a call, but there is no such tool", "tool_choice")
    parameters = tool.parameters if tool.parameters.strip() not in (b"", b"{}") else b'{"type": "object"}'
    name = msgspec.json.encode(tool.name).decode()
    return f'<tool_call>\n{{"name": {name}, "arguments": {minimal_instance(parameters)}}}\n</tool_call>'


def _instance(grammar: Grammar) -> str:
    if grammar.kind == "json_object":
        return "{}"
    if grammar.kind == "json_schema":
        return minimal_instance(grammar.source)
    if grammar.kind == "choice":
        try:
            return msgspec.json.decode(grammar.source, type=list[str])[0]
        except (msgspec.MsgspecError, IndexError) as error:
            raise RequestError("invalid_value", f"choice is no list of texts: {error}", PARAM) from error
    raise RequestError("unsupported_operation", f"the mock cannot follow a grammar of kind {grammar.kind}", PARAM)
