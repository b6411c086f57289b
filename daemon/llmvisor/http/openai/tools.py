"""The tools of a conversation as OpenAI writes them → the protocol's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import shown
from llmvisor.http.openai.grammar import is_set, schema_text
from llmvisor_runtimes.protocol import Tool, ToolCall

ToolName = Annotated[str, Meta(pattern=rf"^[a-zA-Z0-9_-]{{1,{limits.tool_name_chars_max}}}\Z")]
CallId = Annotated[str, Meta(max_length=limits.tool_call_id_chars_max)]
_NO_PARAMETERS = b'{"type":"object","properties":{},"additionalProperties":false}'
"""What a function takes that names no parameters."""


class FunctionSpec(msgspec.Struct):
    """`strict` changes nothing: where a call is enforced, its arguments keep to their schema."""

    name: ToolName
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()


class ToolSpec(msgspec.Struct):
    type: str
    function: FunctionSpec | None = None


class NamedFunction(msgspec.Struct):
    name: str


class NamedTool(msgspec.Struct):
    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=limits.tools_max)]


class ChosenTool(msgspec.Struct):
    """`{"type": "function", …}` is one tool that has to be called, `allowed_tools` some of those that there are."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


ToolSpecs = Annotated[list[ToolSpec], Meta(max_length=limits.tools_max)]
ToolChoice = Literal["none", "auto", "required"] | ChosenTool


class ToolUse(NamedTuple):
    """Fields of `ChatPrompt`."""

    tools: Sequence[Tool] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> bool:
        """Whether the model may call one."""
        return bool(self.tools) and self.choice != "none"


def tool_use(specs: list[ToolSpec] | None, choice: ToolChoice | None, *, parallel: bool) -> ToolUse:
    """Raises `InvalidRequest`, `UnsupportedOperation`."""
    tools = _tools(specs or [])
    if choice is None or isinstance(choice, str):
        if choice == "required" and not tools:
            raise InvalidRequest("tool_choice: expected tools to choose from", param="tool_choice")
        return ToolUse(tools, choice or "auto", None, parallel)
    names = [tool.name for tool in tools]
    if choice.type == "function":
        return ToolUse(tools, "required", _known(choice.function, names, "tool_choice.function"), parallel)
    allowed = choice.allowed_tools
    if allowed is None:
        raise InvalidRequest("tool_choice.allowed_tools is required", param="tool_choice.allowed_tools")
    at = "tool_choice.allowed_tools.tools"
    kept = {_known(tool.function, names, f"{at}[{place}].function") for place, tool in enumerate(allowed.tools)}
    return ToolUse([tool for tool in tools if tool.name in kept], allowed.mode, None, parallel)


def _known(function: NamedFunction | None, names: list[str], at: str) -> str:
    if function is None:
        raise InvalidRequest(f"{at} is required", param=at)
    if function.name not in names:
        there = ", ".join(names[:8]) or "none at all"
        message = f"{at}.name: expected one of the tools ({there}), found {shown(function.name)}"
        raise InvalidRequest(message, param=f"{at}.name")
    return function.name


def _tools(specs: list[ToolSpec]) -> list[Tool]:
    tools: list[Tool] = []
    seen: set[str] = set()
    size = 0
    for number, spec in enumerate(specs):
        tool = _tool(spec, f"tools[{number}]")
        if tool.name in seen:
            param = f"tools[{number}].function.name"
            raise InvalidRequest(f"{param}: {shown(tool.name)} is there twice", param=param)
        seen.add(tool.name)
        tools.append(tool)
        size += len(tool.parameters) + len((tool.description or "").encode())
    if size > limits.tools_bytes_max:
        raise InvalidRequest(f"tools: expected at most {limits.tools_bytes_max} bytes, found {size}", param="tools")
    return tools


def _tool(spec: ToolSpec, at: str) -> Tool:
    if spec.type != "function":
        message = f"{at}.type: only functions can be called here, not {shown(spec.type)}"
        raise UnsupportedOperation(message, param=f"{at}.type")
    function = spec.function
    if function is None:
        raise InvalidRequest(f"{at}.function is required", param=f"{at}.function")
    parameters = _NO_PARAMETERS
    if is_set(function.parameters):
        parameters = schema_text(function.parameters, f"{at}.function.parameters").encode()
    return Tool(function.name, function.description, parameters)


# ---------------------------------------------------------------------------------------------- calls of earlier turns


class CalledFunction(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    """A JSON object, mostly in a string."""


class CalledTool(msgspec.Struct):
    function: CalledFunction
    id: CallId = ""


CalledTools = Annotated[list[CalledTool], Meta(max_length=limits.tool_calls_max)]


def earlier_calls(calls: list[CalledTool] | None) -> list[ToolCall]:
    """The calls that an assistant's message tells of."""
    return [ToolCall(call.id, call.function.name, _arguments(call.function.arguments)) for call in calls or []]


def _arguments(raw: msgspec.Raw) -> str:
    """A JSON object, whatever came: what a model got wrong is fed back to it, so that it can do better."""
    if not is_set(raw):
        return "{}"
    text = bytes(raw).decode(errors="replace")
    try:
        value: object = msgspec.json.decode(raw)
        if isinstance(value, str):
            text = value
            value = msgspec.json.decode(value) if value.strip() else {}
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = None
    if isinstance(value, dict):
        return text if text.strip() else "{}"
    # pydantic-ai's word for it
    return msgspec.json.encode({"INVALID_JSON": text}).decode()
