"""Tools, their calls, and media in conversations: every form of OpenAI's, every way to be wrong, each bound."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.openai.chat import ChatRequest
from llmvisor.http.openai.media import image_size
from llmvisor.http.openai.tokenize import TokenizeRequest
from llmvisor.supervision.requests import generate_command
from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatMessage, ChatPrompt, Sampling, Tool, ToolCall

CHAT = BodyDecoder(ChatRequest)
HI = {"role": "user", "content": "hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def prompt(**fields: Any) -> ChatPrompt:
    generation = CHAT.decode(json.dumps({"messages": [HI], **fields}).encode()).generation("req")
    assert isinstance(generation.prompt, ChatPrompt)
    return generation.prompt


def tool(name: str = "weather", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


# -------------------------------------------------------------------------------------------------------------- tools


def test_tools_reach_the_prompt_whole() -> None:
    """Name, description and schema; `strict` and what else there is changes nothing."""
    asked = prompt(tools=[tool(description="Looks outside.", parameters=PARAMETERS, strict=True), tool("now")])
    first, second = asked.tools
    assert first == Tool("weather", "Looks outside.", json.dumps(PARAMETERS).encode())
    assert (second.name, second.description) == ("now", None)
    assert json.loads(second.parameters) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert (asked.tool_choice, asked.tool_name, asked.parallel_tool_calls) == ("auto", None, True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, ["a", "b"])),
        ("auto", ("auto", None, ["a", "b"])),
        ("none", ("none", None, ["a", "b"])),
        ("required", ("required", None, ["a", "b"])),
        (named("b"), ("required", "b", ["a", "b"])),
        (allowed("auto", "b"), ("auto", None, ["b"])),
        (allowed("required", "b", "a", "b"), ("required", None, ["a", "b"])),
    ],
    ids=repr,
)
def test_tool_choice_in_each_form(choice: object, expected: tuple[str, str | None, list[str]]) -> None:
    """Four words or one name, and OpenAI's list of those that are allowed."""
    asked = prompt(tools=[tool("a"), tool("b")], tool_choice=choice, parallel_tool_calls=False)
    assert (asked.tool_choice, asked.tool_name, [one.name for one in asked.tools]) == expected
    assert asked.parallel_tool_calls is False


def test_tools_are_rendered_and_counted_too() -> None:
    """The paths that show or count a prompt take the tools that make it longer."""
    body = json.dumps({"messages": [HI], "tools": [tool("a")]}).encode()
    counted = BodyDecoder(TokenizeRequest).decode(body).tokenized()
    assert isinstance(counted, ChatPrompt)
    assert [one.name for one in counted.tools] == ["a"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool(), {"type": "function", "function": {}}]}, "tools[1].function.name"),
    ({"tools": [tool("")]}, "tools[0].function.name"),
    ({"tools": [tool("a b")]}, "tools[0].function.name"),
    ({"tools": [tool("a\n")]}, "tools[0].function.name"),
    ({"tools": [tool("é")]}, "tools[0].function.name"),
    ({"tools": [tool("x" * (limits.tool_name_chars_max + 1))]}, "tools[0].function.name"),
    ({"tools": [tool("a"), tool("b"), tool("a")]}, "tools[2].function.name"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters="{}x")]}, "tools[0].function.parameters"),
    ({"tools": [tool(description="x" * (limits.tools_bytes_max + 1))]}, "tools"),
    ({"tools": [tool(f"f{number}", description="x" * 9000) for number in range(60)]}, "tools"),
    ({"tools": [tool(f"f{number}") for number in range(limits.tools_max + 1)]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [tool()], "tool_choice": named("other")}, "tool_choice.function.name"),
    ({"tool_choice": named("weather")}, "tool_choice.function.name"),
    ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    ({"tools": [tool()], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
    ({"tools": [tool()], "tool_choice": allowed("auto", "x")}, "tool_choice.allowed_tools.tools[0].function.name"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: repr(value)[:60])
def test_wrong_tools_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """The path leads to the very tool, and no message carries a megabyte."""
    with pytest.raises(InvalidRequest) as error:
        prompt(**fields)
    assert error.value.param == param
    assert len(str(error.value)) < 300


def test_tools_at_their_bounds_are_taken() -> None:
    """As many, as long a name, as much text as is allowed."""
    empty = len(prompt(tools=[tool()]).tools[0].parameters)
    assert len(prompt(tools=[tool(f"f{number}") for number in range(limits.tools_max)]).tools) == limits.tools_max
    assert prompt(tools=[tool("x" * limits.tool_name_chars_max)]).tools
    assert prompt(tools=[tool(description="x" * (limits.tools_bytes_max - empty))]).tools


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"function_call": "required"},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
    ],
    ids=repr,
)
def test_what_tools_replaced_is_refused_clearly(fields: dict[str, Any]) -> None:
    """Fields of before `tools`, and kinds of tools that nothing here runs."""
    with pytest.raises(UnsupportedOperation):
        prompt(**fields)


# -------------------------------------------------------------------------------------------------- calls and answers


def test_calls_and_their_results_go_back_to_the_model() -> None:
    """An agent's conversation: a call without text, its result, thoughts of before."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    asked = prompt(
        messages=[
            HI,
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sun"}]},
            {"role": "assistant", "content": "Sunny.", "reasoning": "so"},
        ]
    )
    assert asked.messages[1:] == [
        ChatMessage("assistant", "", reasoning="hm", tool_calls=[ToolCall("call_1", "weather", '{"city":"Rome"}')]),
        ChatMessage("tool", "sun", tool_call_id="call_1"),
        ChatMessage("assistant", "Sunny.", reasoning="so"),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a": 1}'),
        ("", "{}"),
        (" ", "{}"),
        (None, "{}"),
        ('{"a": ', '{"INVALID_JSON":"{\\"a\\": "}'),
        ("[1]", '{"INVALID_JSON":"[1]"}'),
        ([1], '{"INVALID_JSON":"[1]"}'),
    ],
    ids=repr,
)
def test_arguments_of_a_call_are_an_object_whatever_came(arguments: object, expected: str) -> None:
    """What a model got wrong goes back to it as it was, in a form that templates can read."""
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    asked = prompt(messages=[HI, {"role": "assistant", "tool_calls": [call]}])
    assert [one.arguments for one in asked.messages[1].tool_calls] == [expected]


CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WRONG_TURNS: list[tuple[dict[str, Any], str]] = [
    ({"role": "assistant", "content": None}, "content"),
    ({"role": "assistant", "tool_calls": []}, "content"),
    ({"role": "user", "content": None, "tool_calls": [CALL]}, "content"),
    ({"role": "tool", "tool_call_id": "x"}, "content"),
    ({"role": "tool", "content": "", "tool_call_id": 5}, "tool_call_id"),
    ({"role": "tool", "content": "", "tool_call_id": "x" * (limits.tool_call_id_chars_max + 1)}, "tool_call_id"),
    ({"role": "assistant", "tool_calls": [{}]}, "tool_calls[0].function"),
    ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls[0].function.name"),
    ({"role": "assistant", "tool_calls": [CALL] * (limits.tool_calls_max + 1)}, "tool_calls"),
    ({"role": "assistant", "content": "", "reasoning_content": 5}, "reasoning_content"),
]


@pytest.mark.parametrize(("message", "param"), WRONG_TURNS, ids=lambda value: repr(value)[:60])
def test_wrong_turns_are_refused_by_name(message: dict[str, Any], param: str) -> None:
    """A turn without anything, calls that name nothing, too many of them."""
    with pytest.raises(InvalidRequest) as error:
        prompt(messages=[HI, message])
    assert error.value.param == f"messages[1].{param}"


def test_turns_at_their_bounds_are_taken() -> None:
    """The most calls in one turn, the longest id, ids that answer no call."""
    assert len(prompt(messages=[{"role": "assistant", "tool_calls": [CALL] * limits.tool_calls_max}]).messages) == 1
    longest = "x" * limits.tool_call_id_chars_max
    assert prompt(messages=[{"role": "tool", "content": "", "tool_call_id": longest}]).messages[0].content == ""


# -------------------------------------------------------------------------------------------------------------- media

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


def sound(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def user(*parts: object) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def png_of(width: int, height: int) -> bytes:
    return PNG[:16] + width.to_bytes(4) + height.to_bytes(4) + PNG[24:]


def test_media_leave_a_marker_in_the_text() -> None:
    """Images and sounds stand where they were, decoded, in their order; a URL may come bare or with its detail."""
    text = {"type": "text", "text": "what?"}
    parts = [image({"url": data_url(PNG), "detail": "low"}), text, sound(WAV), image(data_url(PNG, "image/x"))]
    (message,) = prompt(messages=[user(*parts)]).messages
    assert message.content == f"{MEDIA_MARKER}what?{MEDIA_MARKER}{MEDIA_MARKER}"
    assert message.media == [PNG, WAV, PNG]


TOO_LONG = "A" * ((limits.media_bytes_max + 2) // 3 * 4 + 4)
WRONG_MEDIA: list[tuple[dict[str, Any], str]] = [
    (image(None), ".image_url"),
    (image({}), ".image_url.url"),
    (image({"url": ""}), ".image_url.url"),
    (image({"url": "data:"}), ".image_url.url"),
    (image({"url": "data:image/png,abc"}), ".image_url.url"),
    (image({"url": "data:image/png;base64,"}), ".image_url.url"),
    (image({"url": "data:image/png;base64,=?"}), ".image_url.url"),
    (image({"url": "data:image/png;base64,é"}), ".image_url.url"),
    (image({"url": data_url(b"no image")}), ".image_url.url"),
    (image({"url": data_url(PNG[:20])}), ".image_url.url"),
    (image({"url": data_url(png_of(0, 5))}), ".image_url.url"),
    (image({"url": data_url(png_of(100_000, 100_000))}), ".image_url.url"),
    (image({"url": "data:image/png;base64," + TOO_LONG}), ".image_url.url"),
    (image({"url": "https://example.com/a.png"}), ".image_url.url"),
    (image({"url": "file:///etc/passwd"}), ".image_url.url"),
    (sound(b"no sound"), ".input_audio.data"),
    ({"type": "input_audio"}, ".input_audio"),
    ({"type": "input_audio", "input_audio": {}}, ".input_audio.data"),
    ({"type": "audio_url", "audio_url": {"url": data_url(PNG)}}, ".audio_url.url"),
    ({"type": "video_url"}, ""),
    ({"type": "file"}, ""),
    ({"type": "dance"}, ".type"),
]


@pytest.mark.parametrize(("part", "param"), WRONG_MEDIA, ids=lambda value: repr(value)[:60])
def test_wrong_media_are_refused_by_name(part: dict[str, Any], param: str) -> None:
    """No image, one that would unpack to gigabytes, one that lies elsewhere: nothing of it reaches a worker."""
    with pytest.raises(InvalidRequest) as error:
        prompt(messages=[HI, user({"type": "text", "text": "x"}, part)])
    assert error.value.param == f"messages[1].content[1]{param}"
    assert len(str(error.value)) < 300


def test_media_that_a_model_cannot_read_never_reach_it() -> None:
    """What a model can is known once it is loaded: then at the latest, an image is not dropped in silence."""
    body = json.dumps({"messages": [user(image(data_url(PNG)))]}).encode()
    generation = CHAT.decode(body).generation("req")
    with pytest.raises(UnsupportedOperation):
        generate_command(1, generation, Sampling(), None, ["chat", "tools"])
    for capability in ("vision", "audio"):
        assert generate_command(1, generation, Sampling(), None, ["chat", capability]).prompt == generation.prompt


def test_media_are_bounded_over_the_conversation() -> None:
    """As many as allowed, and not one more, however they are spread."""
    half = user(*[image(data_url(PNG))] * (limits.media_parts_max // 2))
    assert len(prompt(messages=[half, half]).messages) == 2
    with pytest.raises(InvalidRequest) as error:
        prompt(messages=[half, half, user(image(data_url(PNG)))])
    assert error.value.param == "messages"


def test_images_are_bounded_by_what_they_unpack_to_together() -> None:
    """Each within its bound, and more than the bound of a conversation: a few bytes would be gigabytes."""
    large = image(data_url(png_of(8192, limits.image_pixels_max // 8192)))
    fitting = limits.images_pixels_max // limits.image_pixels_max
    assert len(prompt(messages=[user(*[large] * fitting)]).messages) == 1
    with pytest.raises(InvalidRequest, match="pixels in all images") as error:
        prompt(messages=[user(large), user(*[large] * fitting)])
    assert error.value.param == "messages"


def test_marker_in_a_text_does_not_pass_for_an_image() -> None:
    """Beside images its text is refused; without any it is a text like others."""
    assert prompt(messages=[{"role": "user", "content": MEDIA_MARKER}]).messages[0].content == MEDIA_MARKER
    with pytest.raises(InvalidRequest) as error:
        prompt(messages=[user(image(data_url(PNG))), {"role": "user", "content": MEDIA_MARKER}])
    assert error.value.param == "messages[1].content"


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_of(640, 480), (640, 480)),
        (b"GIF89a\x02\x01\x03\x00", (258, 3)),
        (b"BM" + bytes(16) + (7).to_bytes(4, "little") + (-9).to_bytes(4, "little", signed=True), (7, 9)),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc0\x00\x11\x08\x00\x10\x00\x20\x03", (32, 16)),
        (b"RIFF1234WEBPVP8X" + bytes(8) + b"\x01\x00\x00\x02\x00\x00", (2, 3)),
        (b"RIFF1234WEBPVP8 " + bytes(10) + b"\x05\x00\x06\x00", (5, 6)),
        (b"RIFF1234WEBPVP8L" + bytes(5) + b"\x01\x80\x00\x00" + bytes(5), (2, 3)),
        (b"\xff\xd8\xff\xe0\xff\xff", None),
        (b"\xff\xd8" + b"\xff" * 64, None),
        (b"\xff\xd8\xff\xe0\x00\x00" * 4, None),
        (b"RIFF1234WEBPVP8X", None),
        (b"GIF89a", None),
        (b"", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_image_size_is_read_from_each_header(data: bytes, size: tuple[int, int] | None) -> None:
    """Five formats, and files that end too early."""
    assert image_size(data) == size
