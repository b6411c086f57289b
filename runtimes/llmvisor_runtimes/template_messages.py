"""Messages and tools as the variables that chat templates take, in the forms that transformers gives them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, ToolCall
from llmvisor_runtimes.toolcalls import described
from llmvisor_runtimes.toolcalls.families import family_of, shows_tools

_NONE_CONTENT = re.compile(r"""content(?:["']\])?\s+is\s+none""")
_PART_TYPE = re.compile(r"""(?:\[\s*["']type["']\s*\]|\.type\b)""")
_SHORT_ID_CHARACTERS = 9
PROBE_NAME = "probe_function"
_PROBE_VALUE = '"probe_key"'


class TemplateStyle:
    """What a template expects of messages, as far as its source tells; the rest by `try_rendering`.

    `try_rendering` renders messages and gives the text, or None where the template refuses or fails.
    """

    def __init__(self, source: str, try_rendering: Callable[[list[dict[str, Any]]], str | None]) -> None:
        self.family = family_of(source)
        self.shows_tools = shows_tools(source)
        self._keeps_calls = described.keeps_calls(source)
        self._mentions_developer = "developer" in source
        self._mentions_thinking = ".thinking" in source
        self._none_content = bool(_NONE_CONTENT.search(source))
        # Mistral's templates refuse ids of any other length.
        self._short_ids = "!= 9" in source
        self._mentions_parts = bool(_PART_TYPE.search(source))
        self._try_rendering = try_rendering
        self._parts: bool | None = None
        self._argument_objects: bool | None = None
        self._system_role: bool | None = None

    def messages(self, prompt: ChatPrompt) -> list[dict[str, Any]]:
        """The conversation, with what the template does not know told in other ways."""
        messages: Sequence[ChatMessage] = prompt.messages
        if not self._keeps_calls:
            messages = described.with_calls_as_text(messages, self.family)
        if shown_tools(prompt) and not self.shows_tools:
            messages = described.with_tools_told(messages, prompt.tools, self.family)
            if not self._takes_system():
                messages = described.with_system_in_user_turn(messages)
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return [self._message(message, names) for message in messages]

    def tools(self, prompt: ChatPrompt) -> list[dict[str, object]] | None:
        """The tools, where there are any that the template may show."""
        if not shown_tools(prompt) or not self.shows_tools:
            return None
        return [described.tool_object(tool) for tool in prompt.tools]

    def _message(self, message: ChatMessage, names: dict[str, str]) -> dict[str, Any]:
        role = message.role
        if role == "developer" and not self._mentions_developer:
            role = "system"  # the older name of the same role, the one that most templates know
        fields: dict[str, Any] = {"role": role, "content": self._content(message.content)}
        name = message.name
        if message.tool_call_id is not None:
            fields["tool_call_id"] = self._id(message.tool_call_id)
            name = name or names.get(message.tool_call_id)
        if name is not None:
            fields["name"] = name
        if message.reasoning is not None:
            fields["reasoning_content"] = message.reasoning
            if self._mentions_thinking and not (message.tool_calls and message.content):
                fields["thinking"] = message.reasoning
        if message.tool_calls:
            fields["tool_calls"] = [self._call(call) for call in message.tool_calls]
            if not message.content and self._none_content:
                fields["content"] = None
        return fields

    def _content(self, text: str) -> object:
        return _parts(text) if self._takes_parts() else text

    def _takes_parts(self) -> bool:
        """Whether content is a list of parts: those of models that see may read no other, and show no text at all.

        Where images stand the text has its own markers, so a template need not know them.
        """
        if self._parts is None:
            shown = [
                self._mentions_parts
                and "probe_text" in (self._try_rendering([{"role": "user", "content": content}]) or "")
                for content in ("probe_text", _parts("probe_text"))
            ]
            self._parts = shown == [False, True]
        return self._parts

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = decoded_arguments(call.arguments) if self._takes_argument_objects() else call.arguments or "{}"
        function = {"name": call.name, "arguments": arguments}
        return {"id": self._id(call.id), "type": "function", "function": function}

    def _id(self, id: str) -> str:
        if not self._short_ids or (len(id) == _SHORT_ID_CHARACTERS and id.isalnum()):
            return id
        return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID_CHARACTERS]

    def _takes_argument_objects(self) -> bool:
        """Whether arguments are given as an object, as transformers does, or as the text that some templates add up."""
        if self._argument_objects is None:
            as_object = self._probed({"probe_key": 1})
            as_text = "" if _PROBE_VALUE in as_object else self._probed('{"probe_key": 1}')
            self._argument_objects = _PROBE_VALUE not in as_text
        return self._argument_objects

    def _probed(self, arguments: object) -> str:
        call = {"id": "abcdefgh0", "type": "function", "function": {"name": PROBE_NAME, "arguments": arguments}}
        content = None if self._none_content else self._content("")
        assistant = {"role": "assistant", "content": content, "tool_calls": [call]}
        return self._try_rendering([{"role": "user", "content": self._content("x")}, assistant]) or ""

    def _takes_system(self) -> bool:
        """Whether the template shows a system message."""
        if self._system_role is None:
            messages = [
                {"role": "system", "content": self._content("probe_text")},
                {"role": "user", "content": self._content("x")},
            ]
            self._system_role = "probe_text" in (self._try_rendering(messages) or "")
        return self._system_role


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def shown_tools(prompt: ChatPrompt) -> bool:
    """Whether the model is told of tools: with `tool_choice` none it calls none, so it knows of none."""
    return bool(prompt.tools) and prompt.tool_choice != "none"


def decoded_arguments(arguments: str) -> object:
    """The arguments of an earlier call as an object; text that is no JSON object stays text."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return arguments
