"""`POST /v1/chat/completions` over real sockets, against a service that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.support.fake_service import FakeService, Script
from tests.support.http_front import CHAT, COMPLETIONS, Served, served
from tests.support.polling import eventually

from llmvisor import errors
from llmvisor_runtimes.protocol import ChatPrompt

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


def client(front: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0)


async def test_answer_is_a_chat_completion_with_usage_and_timings(front: Served) -> None:
    """The whole answer has OpenAI's shape, names the model by id, and says how long it took."""
    answer = await front.chat(model="tiny")
    assert answer.status == 200
    parsed = ChatCompletion.model_validate(answer.json, strict=True)
    assert parsed.id.startswith("chatcmpl-")
    assert parsed.model == "light/smol"
    assert parsed.choices[0].message.content == "Hello world!"
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.system_fingerprint
    assert answer.json["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert answer.json["timings"] == {
        "prompt_ms": 10.0,
        "predicted_ms": 20.0,
        "prompt_per_second": 300.0,
        "predicted_per_second": 150.0,
    }
    assert answer.json["choices"][0]["message"]["refusal"] is None
    assert answer.json["choices"][0]["logprobs"] is None


async def test_answer_headers_tell_model_cache_and_times(front: Served) -> None:
    """Who served, whether from a cache, and what was waited for."""
    for stream in (False, True):
        headers = (await front.chat(stream=stream)).headers
        assert headers["X-LLMVISOR-Model"] == "light/smol"
        assert headers["X-LLMVISOR-Cache"] == "off"
        assert headers["X-LLMVISOR-Queue-Ms"] == "1.500"
        assert headers["X-LLMVISOR-Load-Ms"] == "0.250"


async def test_generation_carries_every_field_that_was_set(front: Served) -> None:
    """What the client set arrives in the service's terms, nothing else does."""
    await front.chat(
        model="light",
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=-2,
        logit_bias={"15": -100},
        dry_sequence_breakers=["x"],
        n=2,
        max_tokens=9,
        max_completion_tokens=2,
        stop="END",
        logprobs=True,
        top_logprobs=4,
        ignore_eos=True,
        cache_prompt=False,
        keep_alive="1h30m",
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        some_new_field=[1],
    )
    (generation,) = front.service.generations
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 3, 0.1)
    assert sampling.logit_bias == {15: -100.0}
    assert sampling.dry_sequence_breakers == ("x",)
    assert sampling.seed is not None
    assert 0 <= sampling.seed < 2**32
    assert sampling.repeat_penalty is None
    assert (generation.n, generation.max_tokens, generation.stop, generation.logprobs) == (2, 2, ["END"], 4)
    assert (generation.ignore_eos, generation.cache_prompt, generation.keep_alive_seconds) == (True, False, 5400.0)
    assert isinstance(generation.prompt, ChatPrompt)
    assert generation.prompt.template_kwargs == b'{"reasoning_effort":"low","enable_thinking":false}'


async def test_defaults_are_left_to_the_model(front: Served) -> None:
    """A request with messages alone sets nothing else."""
    await front.chat()
    (generation,) = front.service.generations
    assert all(getattr(generation.sampling, name) is None for name in generation.sampling.__struct_fields__)
    assert (generation.n, generation.max_tokens, generation.stop, generation.logprobs) == (1, None, [], None)
    assert (generation.keep_alive_seconds, generation.cache_prompt, generation.echo) == (None, True, False)


async def test_content_parts_are_joined(front: Served) -> None:
    """Text parts make one text, in order; null fields count as absent."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "d", "name": None}, {"role": "user", "content": parts}]
    answer = await front.post(CHAT, {"messages": messages, "temperature": None, "tools": None, "stop": None})
    assert answer.status == 200
    prompt = front.service.generations[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [(message.role, message.content) for message in prompt.messages] == [("developer", "d"), ("user", "ab")]


async def test_stream_is_role_texts_finish_usage_done(front: Served) -> None:
    """The chunks come in OpenAI's order, each of them valid, the last with usage and no choices."""
    answer = await front.chat(stream=True, stream_options={"include_usage": True})
    assert answer.status == 200
    *events, done = answer.events
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == ["Hello", " world", "!"]
    assert chunks[4].choices[0].finish_reason == "stop"
    assert chunks[5].choices == []
    assert chunks[5].usage is not None
    assert chunks[5].usage.total_tokens == 8
    assert events[5]["timings"]["predicted_per_second"] == 150.0
    assert [event["usage"] for event in events[:5]] == [None] * 5


async def test_stream_without_usage_has_no_usage_chunk(front: Served) -> None:
    """Usage comes when it is asked for and not otherwise."""
    events = (await front.chat(stream=True)).events
    assert not any("usage" in event for event in events[:-1])
    assert all(event["choices"] for event in events[:-1])


@pytest.mark.parametrize("batch", [1, 2, 7, 100])
async def test_stream_says_what_the_whole_answer_says(tmp_path: Path, batch: int) -> None:
    """However the deltas are batched, each choice's chunks add up to its text, awkward characters included."""
    pieces = ['"', "\\", "\n", "é", "日本", "😀", "\x00", "</script>", ""]
    service = FakeService(script=Script(pieces=pieces, batch=batch))
    async with served(tmp_path, service) as front:
        events = (await front.chat(stream=True, n=3)).events[:-1]
        texts = ["", "", ""]
        finishes: dict[int, str] = {}
        for event in events:
            (choice,) = event["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            if choice["finish_reason"]:
                finishes[choice["index"]] = choice["finish_reason"]
        assert texts == ["".join(pieces)] * 3
        assert finishes == {0: "stop", 1: "stop", 2: "stop"}
        whole = (await front.chat(n=3)).json
        assert [choice["message"]["content"] for choice in whole["choices"]] == texts
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_fingerprint_is_of_the_model_as_loaded(tmp_path: Path, stream: bool) -> None:
    """The first answer, which had to wait for the model to load, says the same as the next."""
    gate = asyncio.Event()
    service = FakeService(script=Script(gate=gate))
    loaded = service.statuses[0]
    async with served(tmp_path, service) as front:
        for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "x"})):
            service.statuses[0] = msgspec.structs.replace(loaded, state="not_loaded", size=None, created=0)
            first = asyncio.create_task(front.post(path, {**body, "stream": stream}))
            await eventually(lambda: service.running == 1, 10, "the request waits")
            service.statuses[0] = loaded
            gate.set()
            answers = [await first, await front.post(path, {**body, "stream": stream})]
            said = [answer.events[0] if stream else answer.json for answer in answers]
            assert len({one["system_fingerprint"] for one in said}) == 1
            assert said[0]["system_fingerprint"].startswith("fp_")
            gate.clear()


async def test_length_finish_is_told(front: Served) -> None:
    """An answer that `max_tokens` ended says so."""
    answer = await front.chat(max_tokens=2)
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["choices"][0]["message"]["content"] == "Hello world"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_have_bytes_and_alternatives(tmp_path: Path, stream: bool) -> None:
    """Each token with its exact bytes; a part of a character shows as U+FFFD; minus infinity is a number."""
    service = FakeService(script=Script(pieces=["ab", b"\xe2\x82"]))
    async with served(tmp_path, service) as front:
        answer = await front.chat(stream=stream, logprobs=True, top_logprobs=1)
        if stream:
            chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in answer.events[:-1]]
            tokens = [
                token for chunk in chunks if (found := chunk.choices[0].logprobs) for token in found.content or []
            ]
        else:
            found = ChatCompletion.model_validate(answer.json, strict=True).choices[0].logprobs
            assert found is not None
            tokens = found.content or []
        assert [(token.token, token.bytes, token.logprob) for token in tokens] == [
            ("ab", [97, 98], -0.5),
            ("\ufffd", [0xE2, 0x82], -0.5),
        ]
        assert tokens[0].top_logprobs[0].logprob == -9999.0


async def test_openai_client_chats_and_streams(front: Served) -> None:
    """The official client reads both kinds of answer."""
    async with client(front) as openai_client:
        whole = await openai_client.chat.completions.create(model="light", messages=MESSAGES, n=2)
        assert [choice.message.content for choice in whole.choices] == ["Hello world!"] * 2
        stream = await openai_client.chat.completions.create(
            model="light", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world!"
        assert chunks[-1].usage is not None


async def test_openai_client_raises_its_own_errors(tmp_path: Path) -> None:
    """Errors become the client's own classes, with our code and param; one inside a stream is raised too."""
    service = FakeService(script=Script(fail=errors.RuntimeCrashed("the worker died"), fail_after=2))
    async with served(tmp_path, service) as front, client(front) as openai_client:
        create = openai_client.chat.completions.create
        with pytest.raises(openai.BadRequestError) as bad:
            await create(model="light", messages=MESSAGES, temperature=9)
        assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
        with pytest.raises(openai.NotFoundError) as missing:
            await create(model="nosuch", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        said: list[str] = []
        stream = await create(model="light", messages=MESSAGES, stream=True)

        async def read() -> None:
            async for chunk in stream:
                said.append(chunk.choices[0].delta.content or "")  # noqa: PERF401  # what came before the error counts

        with pytest.raises(openai.APIError, match="the worker died"):
            await read()
        assert said == ["", "Hello", " world"]


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].image_url.url"),
    ({"model": "embedding"}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED, ids=[repr(fields)[:40] for fields, _ in UNSUPPORTED])
async def test_what_no_model_can_do_is_refused_and_not_dropped(
    front: Served, fields: dict[str, Any], param: str
) -> None:
    """A field that would change the answer and cannot be honoured is 400 unsupported_operation, by name."""
    answer = await front.post(CHAT, {"messages": MESSAGES, **fields})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_operation", param)
    assert front.service.generations == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"function_call": "auto"},
        {"tools": []},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"grammar": None},
        {"parallel_tool_calls": True},
    ],
    ids=repr,
)
async def test_fields_that_ask_for_nothing_are_accepted(front: Served, fields: dict[str, Any]) -> None:
    """Defaults spelled out, and tools that must not be used, are no reason to refuse."""
    assert (await front.chat(**fields)).status == 200
