"""Tool calls, thoughts and guessed tokens in answers: whole and streamed, as OpenAI's own models read them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageFunctionToolCall
from tests.support.fake_service import LIGHT, FakeService, Script
from tests.support.http_front import CHAT, COMPLETIONS, Answer, Served, served

from llmvisor import errors
from llmvisor_runtimes.protocol import ChatPrompt, Delta, TokenLogprob, ToolCallDelta

TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "now"}},
]
MESSAGES: Any = [{"role": "user", "content": "hi"}]
ABLE = msgspec.structs.replace(
    LIGHT, capabilities=["chat", "completions", "tools", "structured_output", "infill", "vision"]
)


def delta(text: str = "", *, calls: list[ToolCallDelta] | None = None, **fields: Any) -> Delta:
    return Delta(id=1, index=0, text=text, tokens=[7], tool_calls=calls or [], **fields)


def piece(index: int, arguments: str) -> ToolCallDelta:
    return ToolCallDelta(index=index, id=None, name=None, arguments=arguments)


def begin(index: int, id: str, name: str, arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index=index, id=id, name=name, arguments=arguments)


TWO_CALLS = [
    delta(calls=[begin(0, "call_a", "weather")]),
    delta(calls=[piece(0, '{"city":')]),
    delta(calls=[piece(0, '"Rome é"}'), begin(1, "call_b", "now", "{")]),
    delta(calls=[piece(1, "}")]),
    delta(finish="tool_calls"),
]
EXPECTED_CALLS = [("call_a", "weather", '{"city":"Rome é"}'), ("call_b", "now", "{}")]
THOUGHTS = [
    delta(reasoning="Let me "),
    delta(reasoning="think.", text="It"),
    delta(text=" is."),
    delta(finish="stop"),
]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    service = FakeService(statuses=[ABLE], script=Script(deltas=TWO_CALLS))
    async with served(tmp_path, service) as it:
        yield it


def whole(answer: Answer) -> ChatCompletion:
    assert answer.status == 200, answer.body
    return ChatCompletion.model_validate(answer.json, strict=True)


def chunks(answer: Answer) -> list[ChatCompletionChunk]:
    *events, done = answer.events
    assert done == "[DONE]"
    return [ChatCompletionChunk.model_validate(event, strict=True) for event in events]


def joined(streamed: list[ChatCompletionChunk], index: int = 0) -> list[tuple[str, str, str]]:
    """The calls that a stream's chunks add up to, as every client adds them."""
    calls: dict[int, list[str]] = {}
    for chunk in streamed:
        for choice in chunk.choices:
            for call in (choice.delta.tool_calls or []) if choice.index == index else []:
                assert call.function is not None
                if call.id is not None:
                    assert call.index not in calls
                    assert call.type == "function"
                    calls[call.index] = [call.id, call.function.name or "", ""]
                else:
                    assert (call.type, call.function.name) == (None, None)
                calls[call.index][2] += call.function.arguments or ""
    return [(id, name, arguments) for id, name, arguments in calls.values()]


async def test_whole_answer_has_the_calls_and_null_content(front: Served) -> None:
    """Calls alone: content is null, each call is a function with its arguments, and the finish says why."""
    answer = await front.chat(tools=TOOLS)
    (choice,) = whole(answer).choices
    calls = [
        call for call in choice.message.tool_calls or [] if isinstance(call, ChatCompletionMessageFunctionToolCall)
    ]
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == EXPECTED_CALLS
    assert answer.json["choices"][0]["message"]["content"] is None
    assert answer.json["choices"][0]["message"]["tool_calls"][1] == {
        "id": "call_b",
        "type": "function",
        "function": {"name": "now", "arguments": "{}"},
    }
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("batch", [1, 2, 100])
async def test_streamed_calls_add_up_to_the_whole_answers(tmp_path: Path, batch: int) -> None:
    """However deltas are batched, for each choice: first id and name, then pieces of arguments."""
    service = FakeService(statuses=[ABLE], script=Script(deltas=TWO_CALLS, batch=batch))
    async with served(tmp_path, service) as front:
        answer = await front.chat(tools=TOOLS, stream=True, n=2)
        streamed = chunks(answer)
        assert joined(streamed, 0) == joined(streamed, 1) == EXPECTED_CALLS
        finishes = [choice.finish_reason for chunk in streamed for choice in chunk.choices if choice.finish_reason]
        assert finishes == ["tool_calls", "tool_calls"]
        first = next(event for event in answer.events if "tool_calls" in event["choices"][0]["delta"])
        assert first["choices"][0]["delta"] == {
            "tool_calls": [
                {"index": 0, "function": {"arguments": "", "name": "weather"}, "id": "call_a", "type": "function"}
            ]
        }


async def test_text_before_a_call_stays(tmp_path: Path) -> None:
    """A model may say something and then call."""
    deltas = [delta("Let me see."), *TWO_CALLS]
    async with served(tmp_path, FakeService(statuses=[ABLE], script=Script(deltas=deltas))) as front:
        message = whole(await front.chat(tools=TOOLS)).choices[0].message
        assert message.content == "Let me see."
        assert len(message.tool_calls or []) == 2
        streamed = chunks(await front.chat(tools=TOOLS, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Let me see."
        assert joined(streamed) == EXPECTED_CALLS


async def test_answers_without_calls_or_thoughts_do_not_name_them(tmp_path: Path) -> None:
    """Neither field is there for clients to stumble over."""
    async with served(tmp_path, FakeService(statuses=[ABLE])) as front:
        message = (await front.chat(tools=TOOLS)).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Hello world!", "refusal": None}
        answer = await front.chat(tools=TOOLS, stream=True)
        for event in answer.events[1:-2]:
            assert list(event["choices"][0]["delta"]) == ["content"]


@pytest.mark.parametrize("logprobs", [False, True])
async def test_thoughts_are_reasoning_content(tmp_path: Path, logprobs: bool) -> None:
    """What a model thinks is kept apart from what it says, whole and streamed."""
    tokens = [TokenLogprob(token=7, piece=b"x", logprob=-0.5, top=[])] if logprobs else []
    deltas = [msgspec.structs.replace(one, logprobs=tokens) for one in THOUGHTS[:-1]] + THOUGHTS[-1:]
    async with served(tmp_path, FakeService(statuses=[ABLE], script=Script(deltas=deltas))) as front:
        answer = await front.chat(logprobs=logprobs)
        message = answer.json["choices"][0]["message"]
        assert whole(answer).choices[0].finish_reason == "stop"
        assert (message["reasoning_content"], message["content"]) == ("Let me think.", "It is.")
        answer = await front.chat(stream=True, logprobs=logprobs)
        chunks(answer)
        said = [event["choices"][0]["delta"] for event in answer.events[:-1]]
        assert "".join(one.get("reasoning_content", "") for one in said) == "Let me think."
        assert "".join(one.get("content", "") for one in said) == "It is."
        counted = [event["choices"][0]["logprobs"] for event in answer.events[:-1]]
        assert sum(len(one["content"]) for one in counted if one) == (3 if logprobs else 0)


async def test_answer_that_ended_in_its_thoughts_has_empty_content(tmp_path: Path) -> None:
    """Cut by `max_tokens` before it said anything: content is an empty text, not null."""
    deltas = [delta(reasoning="Hm"), delta(finish="length")]
    async with served(tmp_path, FakeService(statuses=[ABLE], script=Script(deltas=deltas))) as front:
        choice = (await front.chat()).json["choices"][0]
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("", "Hm")
        assert choice["finish_reason"] == "length"


async def test_usage_and_timings_tell_guessed_tokens(tmp_path: Path) -> None:
    """OpenAI's details and llama.cpp's timings, and only where something was guessed."""
    service = FakeService(statuses=[ABLE], script=Script(drafted_tokens=10, accepted_tokens=7))
    async with served(tmp_path, service) as front:
        answers = [(await front.chat()).json, (await front.post(COMPLETIONS, {"prompt": "x"})).json]
        answers.append((await front.chat(stream=True, stream_options={"include_usage": True})).events[-2])
        for answer in answers:
            details = answer["usage"]["completion_tokens_details"]
            assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (7, 3)
            assert (answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]) == (10, 7)
        two = (await front.post(COMPLETIONS, {"prompt": ["x", "y"]})).json
        assert two["timings"]["draft_n"] == 20
        service.script = Script()
        assert "draft_n" not in (await front.chat()).json["timings"]


async def test_generation_carries_tools_form_and_adapters(front: Served) -> None:
    """What a client asks for arrives in the service's terms."""
    await front.chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, speculative="lookup")
    await front.chat(response_format={"type": "json_object"}, adapters={"a": 2})
    await front.post(COMPLETIONS, {"prompt": "x", "suffix": "y", "guided_regex": "a"})
    first, second, third = front.service.generations
    assert isinstance(first.prompt, ChatPrompt)
    assert [tool.name for tool in first.prompt.tools] == ["weather", "now"]
    assert (first.prompt.tool_choice, first.prompt.parallel_tool_calls) == ("required", False)
    assert first.speculative == "lookup"
    assert second.grammar is not None
    assert second.grammar.kind == "json_object"
    assert second.adapters is not None
    assert third.grammar is not None


IMAGE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}],
}
SOUND = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRgAAAABXQVZF"}}]}
BEYOND: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": MESSAGES, "tools": TOOLS}, "tools"),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"messages": MESSAGES, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    (CHAT, {"messages": [*MESSAGES, IMAGE]}, "messages[1].content[0]"),
    (CHAT, {"messages": [SOUND]}, "messages[0].content[0]"),
    (COMPLETIONS, {"prompt": "x", "guided_choice": ["a"]}, "guided_choice"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix"),
]


@pytest.mark.parametrize(("path", "body", "param"), BEYOND, ids=lambda value: repr(value)[-40:])
async def test_what_a_model_cannot_do_is_refused_once_that_is_known(
    tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    """A loaded model has told what it can; of one that is not loaded the worker decides."""
    async with served(tmp_path) as front:
        answer = await front.post(path, {"model": "smol", **body})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_operation", param)
        assert front.service.generations == []
        assert (await front.post(path, {"model": "plain", **body})).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_form_that_a_worker_refuses_is_named_as_the_client_did(tmp_path: Path, stream: bool) -> None:
    """A worker knows one grammar; the client is told which of its fields was wrong."""
    error = errors.InvalidRequest("no such type: strin", param="grammar")
    service = FakeService(statuses=[ABLE], script=Script(fail=error))
    async with served(tmp_path, service) as front:
        form: Any = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}}
        answer = await front.chat(**form, stream=stream)
        assert (answer.status, answer.error["param"]) == (400, "response_format.json_schema.schema")
    service.script = Script(fail=errors.InvalidRequest("no rule: start", param="grammar"))
    async with served(tmp_path, service) as front:
        answer = await front.post(COMPLETIONS, {"prompt": ["a", "b"], "guided_grammar": "x", "stream": stream})
        assert (answer.status, answer.error["param"]) == (400, "guided_grammar")


async def test_tools_that_must_not_be_used_need_no_capability(tmp_path: Path) -> None:
    """`tool_choice: none` asks nothing of a model."""
    async with served(tmp_path) as front:
        assert (await front.chat(model="smol", tools=TOOLS, tool_choice="none")).status == 200


async def test_call_that_never_began_is_an_error_and_no_nonsense(tmp_path: Path) -> None:
    """A worker that continues a call it did not announce: the client is told, in words."""
    deltas = [delta(calls=[piece(1, "{}")]), delta(finish="tool_calls")]
    async with served(tmp_path, FakeService(statuses=[ABLE], script=Script(deltas=deltas))) as front:
        answer = await front.chat(tools=TOOLS)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")


async def test_openai_client_collects_streamed_calls(front: Served) -> None:
    """The official client's own accumulator makes the calls of the stream whole."""
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
        async with client.chat.completions.stream(model="light", messages=MESSAGES, tools=TOOLS) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        assert "tool_calls.function.arguments.delta" in kinds
        calls = final.choices[0].message.tool_calls or []
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == EXPECTED_CALLS
        assert json.loads(calls[0].function.arguments) == {"city": "Rome é"}
