"""A conversation as OpenAI writes it → a `ChatPrompt`. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import shown
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt

Role = Literal["system", "developer", "user", "assistant", "tool"]
_MEDIA = frozenset({"image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "input_file"})


class ContentPart(msgspec.Struct):
    """One part of a message; which fields it has depends on `type`."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(msgspec.Struct):
    role: Role
    content: str | Annotated[list[ContentPart], Meta(max_length=limits.content_parts_max)] | None = None
    name: Annotated[str, Meta(max_length=limits.model_name_chars_max)] | None = None
    tool_calls: list[msgspec.Raw] | None = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=limits.messages_max)]
TemplateKwargs = dict[str, msgspec.Raw]


def chat_prompt(
    messages: list[Message],
    *,
    add_generation_prompt: bool | None,
    template_kwargs: TemplateKwargs | None,
    reasoning_effort: str | None = None,
) -> ChatPrompt:
    """Raises `InvalidRequest`, `UnsupportedOperation`."""
    return ChatPrompt(
        messages=[_flattened(message, number) for number, message in enumerate(messages)],
        add_generation_prompt=add_generation_prompt is not False,
        template_kwargs=_template_kwargs(template_kwargs, reasoning_effort),
    )


def _flattened(message: Message, number: int) -> ChatMessage:
    at = f"messages[{number}]"
    if message.tool_calls:
        raise UnsupportedOperation(f"{at}.tool_calls: tools are not supported by this model", param=f"{at}.tool_calls")
    content = message.content
    if content is None:
        raise InvalidRequest(f"{at}.content is required", param=f"{at}.content")
    if not isinstance(content, str):
        content = "".join(_part_text(part, f"{at}.content[{place}]") for place, part in enumerate(content))
    return ChatMessage(role=message.role, content=content, name=message.name)


def _part_text(part: ContentPart, at: str) -> str:
    if part.type in _MEDIA:
        raise UnsupportedOperation(f"{at}: this model reads text, not {part.type}", param=at)
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in {"text", "input_text", "refusal"}:
        raise InvalidRequest(
            f"{at}.type: expected text, image_url or input_audio, found {shown(part.type)}", param=f"{at}.type"
        )
    if text is None:
        raise InvalidRequest(f"{at}.text is required", param=f"{at}.text")
    return text


def _template_kwargs(given: TemplateKwargs | None, reasoning_effort: str | None) -> bytes:
    if not given and reasoning_effort is None:
        return b"{}"
    effort = (
        {} if reasoning_effort is None else {"reasoning_effort": msgspec.Raw(msgspec.json.encode(reasoning_effort))}
    )
    encoded = msgspec.json.encode({**effort, **(given or {})})
    if len(encoded) > limits.template_kwargs_bytes_max:
        raise InvalidRequest(
            f"chat_template_kwargs: expected at most {limits.template_kwargs_bytes_max} bytes, found {len(encoded)}",
            param="chat_template_kwargs",
        )
    return encoded
