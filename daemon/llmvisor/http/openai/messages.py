"""A conversation as OpenAI writes it → a `ChatPrompt`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import shown
from llmvisor.http.openai.media import base64_bytes, checked_image, checked_sound, data_url_bytes, image_size
from llmvisor.http.openai.tools import CalledTools, CallId, ToolUse, earlier_calls
from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatMessage, ChatPrompt

Role = Literal["system", "developer", "user", "assistant", "tool"]
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal"})
_UNREAD = frozenset({"video_url", "input_video", "file", "input_file"})
_IMAGES = frozenset({"image_url", "input_image"})
Fetched = Mapping[str, bytes]
"""What was fetched, by URL."""


class ImageUrl(msgspec.Struct):
    url: str


class InputAudio(msgspec.Struct):
    data: str
    """Base64."""


class ContentPart(msgspec.Struct):
    """One part of a message; which fields it has depends on `type`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None
    input_audio: InputAudio | None = None
    audio_url: ImageUrl | str | None = None


Content = str | Annotated[list[ContentPart], Meta(max_length=limits.content_parts_max)]


class Message(msgspec.Struct):
    role: Role
    content: Content | None = None
    name: Annotated[str, Meta(max_length=limits.model_name_chars_max)] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Newer vLLM's name of the same."""
    tool_calls: CalledTools | None = None
    tool_call_id: CallId | None = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=limits.messages_max)]
TemplateKwargs = dict[str, msgspec.Raw]


def chat_prompt(
    messages: list[Message],
    *,
    add_generation_prompt: bool | None,
    template_kwargs: TemplateKwargs | None,
    reasoning_effort: str | None = None,
    use: ToolUse | None = None,
    fetched: Fetched | None = None,
) -> ChatPrompt:
    """`fetched` is what `remote_media` named. Raises `InvalidRequest`, `UnsupportedOperation`."""
    use = use or ToolUse()
    flattened = [_flattened(message, number, fetched or {}) for number, message in enumerate(messages)]
    _check_media(flattened)
    return ChatPrompt(
        messages=flattened,
        add_generation_prompt=add_generation_prompt is not False,
        template_kwargs=_template_kwargs(template_kwargs, reasoning_effort),
        tools=list(use.tools),
        tool_choice=use.choice,
        tool_name=use.name,
        parallel_tool_calls=use.parallel,
    )


def media_needs(messages: list[Message]) -> Iterator[tuple[str, str]]:
    """What a model has to be able to read, and where that stands."""
    for number, message in enumerate(messages):
        if message.content is None or isinstance(message.content, str):
            continue
        for place, part in enumerate(message.content):
            if part.type not in _TEXTS:
                yield "audio" if "audio" in part.type else "vision", f"messages[{number}].content[{place}]"


def remote_media(messages: list[Message]) -> dict[str, str]:
    """The URLs of images and sounds that lie on other hosts, each with the field that names it first."""
    found: dict[str, str] = {}
    for number, message in enumerate(messages):
        if message.content is None or isinstance(message.content, str):
            continue
        for place, part in enumerate(message.content):
            field = "image_url" if part.type in _IMAGES else "audio_url"
            given = part.image_url if part.type in _IMAGES else part.audio_url if part.type == field else None
            url = given.url if isinstance(given, ImageUrl) else given
            if url is not None and url[:6].lower().startswith(("http:", "https:")):
                found.setdefault(url, f"messages[{number}].content[{place}].{field}.url")
    return found


def _flattened(message: Message, number: int, fetched: Fetched) -> ChatMessage:
    at = f"messages[{number}]"
    content = message.refusal if message.content is None else message.content
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    if content is None:
        # A turn of calls has no text, and a turn that was cut short may have thoughts alone.
        if message.role != "assistant" or not (message.tool_calls or reasoning):
            raise InvalidRequest(f"{at}.content is required", param=f"{at}.content")
        content = ""
    media: list[bytes] = []
    if not isinstance(content, str):
        parts = [_part_text(part, f"{at}.content[{place}]", media, fetched) for place, part in enumerate(content)]
        content = "".join(parts)
    return ChatMessage(
        role=message.role,
        content=content,
        name=message.name,
        reasoning=reasoning or None,
        tool_calls=earlier_calls(message.tool_calls),
        tool_call_id=message.tool_call_id,
        media=media,
    )


def _part_text(part: ContentPart, at: str, media: list[bytes], fetched: Fetched) -> str:
    """A part as text; the file of an image or a sound goes to `media`, and its marker into the text."""
    if part.type in _TEXTS:
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise InvalidRequest(f"{at}.text is required", param=f"{at}.text")
        return text
    if part.type in _IMAGES:
        param = f"{at}.image_url.url"
        media.append(checked_image(_file(_url(part.image_url, f"{at}.image_url"), param, fetched), param))
    elif part.type == "input_audio":
        if part.input_audio is None:
            raise InvalidRequest(f"{at}.input_audio is required", param=f"{at}.input_audio")
        param = f"{at}.input_audio.data"
        media.append(checked_sound(base64_bytes(part.input_audio.data, param), param))
    elif part.type == "audio_url":
        param = f"{at}.audio_url.url"
        media.append(checked_sound(_file(_url(part.audio_url, f"{at}.audio_url"), param, fetched), param))
    elif part.type in _UNREAD:
        raise UnsupportedOperation(f"{at}: models here read text, images and sounds, not {part.type}", param=at)
    else:
        message = f"{at}.type: expected text, image_url or input_audio, found {shown(part.type)}"
        raise InvalidRequest(message, param=f"{at}.type")
    return MEDIA_MARKER


def _url(given: ImageUrl | str | None, at: str) -> str:
    if given is None:
        raise InvalidRequest(f"{at} is required", param=at)
    return given if isinstance(given, str) else given.url


def _file(url: str, param: str, fetched: Fetched) -> bytes:
    data = fetched.get(url)
    return data_url_bytes(url, param) if data is None else data


def _check_media(messages: list[ChatMessage]) -> None:
    """Raises `InvalidRequest` for too many, and for a text that would pass for one more."""
    count = sum(len(message.media) for message in messages)
    if count > limits.media_parts_max:
        message = f"messages: expected at most {limits.media_parts_max} images and sounds, found {count}"
        raise InvalidRequest(message, param="messages")
    if not count:
        return
    sizes = [image_size(file) or (0, 0) for message in messages for file in message.media]
    if (pixels := sum(width * height for width, height in sizes)) > limits.images_pixels_max:
        message = f"messages: expected at most {limits.images_pixels_max} pixels in all images, found {pixels}"
        raise InvalidRequest(message, param="messages")
    for number, one in enumerate(messages):
        if one.content.count(MEDIA_MARKER) > len(one.media):
            param = f"messages[{number}].content"
            raise InvalidRequest(f"{param}: {MEDIA_MARKER} has a meaning of its own beside images", param=param)


def _template_kwargs(given: TemplateKwargs | None, reasoning_effort: str | None) -> bytes:
    if not given and reasoning_effort is None:
        return b"{}"
    effort = (
        {} if reasoning_effort is None else {"reasoning_effort": msgspec.Raw(msgspec.json.encode(reasoning_effort))}
    )
    encoded = msgspec.json.encode({**effort, **(given or {})})
    try:
        msgspec.json.decode(encoded)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(f"chat_template_kwargs: {error}", param="chat_template_kwargs") from None
    if len(encoded) > limits.template_kwargs_bytes_max:
        raise InvalidRequest(
            f"chat_template_kwargs: expected at most {limits.template_kwargs_bytes_max} bytes, found {len(encoded)}",
            param="chat_template_kwargs",
        )
    return encoded
