"""`POST /v1/completions`: every form of prompt, echo, log-probabilities, best_of, streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from tests.support.fake_service import FakeService, Script
from tests.support.http_front import COMPLETIONS, Served, served

from llmvisor import limits
from llmvisor_runtimes.protocol import TextPrompt, TokenPrompt


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path, FakeService(script=Script(by_prompt=True))) as it:
        yield it


def texts(events: list[Any]) -> dict[int, str]:
    """The text of each choice of a stream."""
    joined: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            joined[choice["index"]] = joined.get(choice["index"], "") + choice["text"]
    return joined


async def test_answer_is_a_text_completion(front: Served) -> None:
    """OpenAI's shape, with usage and timings."""
    answer = await front.post(COMPLETIONS, {"model": "light", "prompt": "a b c"})
    parsed = Completion.model_validate(answer.json, strict=True)
    assert parsed.id.startswith("cmpl-")
    assert (parsed.object, parsed.model) == ("text_completion", "light/smol")
    assert (parsed.choices[0].text, parsed.choices[0].finish_reason) == ("abc", "stop")
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 8
    assert answer.json["timings"]["prompt_ms"] == 10.0
    assert answer.headers["X-LLMVISOR-Model"] == "light/smol"


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_of_several_prompts_come_prompt_by_prompt(front: Served, stream: bool) -> None:
    """Choice i of prompt p stands at p·n + i, and usage is the sum."""
    body = {"prompt": ["a", "b b", "c"], "n": 2, "stream": stream, "stream_options": {"include_usage": True}}
    answer = await front.post(COMPLETIONS, body)
    if stream:
        *events, done = answer.events
        assert done == "[DONE]"
        assert texts(events) == {0: "a", 1: "a", 2: "bb", 3: "bb", 4: "c", 5: "c"}
        usage = events[-1]["usage"]
        assert events[-1]["choices"] == []
        assert all(event["usage"] is None for event in events[:-1])
    else:
        assert [(c["index"], c["text"]) for c in answer.json["choices"]] == list(
            enumerate(["a", "a", "bb", "bb", "c", "c"])
        )
        usage = answer.json["usage"]
    assert usage["prompt_tokens"] == 15
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens_details"]["cached_tokens"] == 6


async def test_token_prompts_arrive_as_they_are(front: Served) -> None:
    """Ids are not turned into text on the way."""
    await front.post(COMPLETIONS, {"prompt": [1, 2]})
    await front.post(COMPLETIONS, {"prompt": [[3], [4, 5]]})
    prompts = [generation.prompt for generation in front.service.generations]
    assert prompts == [TokenPrompt([1, 2]), TokenPrompt([3]), TokenPrompt([4, 5])]


@pytest.mark.parametrize("stream", [False, True])
async def test_many_prompts_run_a_bounded_number_at_a_time(tmp_path: Path, stream: bool) -> None:
    """All of the prompts are answered, and no more at once than the bound."""
    most = 0

    class Counting(FakeService):
        def generate(self, model: str, generation: Any) -> Any:
            nonlocal most
            most = max(most, self.running + 1)
            return super().generate(model, generation)

    service = Counting(script=Script(by_prompt=True))
    async with served(tmp_path, service) as front:
        prompts = [f"p{number}" for number in range(limits.prompts_max)]
        answer = await front.post(COMPLETIONS, {"prompt": prompts, "stream": stream})
        found = texts(answer.events[:-1]) if stream else {c["index"]: c["text"] for c in answer.json["choices"]}
        assert found == dict(enumerate(prompts))
    assert 1 < most <= limits.prompts_in_flight_max


async def test_echo_and_logprobs_have_the_legacy_shape(front: Served) -> None:
    """Parallel lists; nothing predicts the first token of an echo; offsets count characters of the text."""
    answer = await front.post(COMPLETIONS, {"prompt": "é x", "echo": True, "logprobs": 1, "max_tokens": 5})
    choice = answer.json["choices"][0]
    assert choice["text"] == "é xéx"
    assert choice["logprobs"] == {
        "tokens": ["é x", "é", "x"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [
            {" other": -9999.0, "é x": -0.5},
            {" other": -9999.0, "é": -0.5},
            {" other": -9999.0, "x": -0.5},
        ],
        "text_offset": [0, 3, 4],
    }
    (generation,) = front.service.generations
    assert (generation.echo, generation.prompt) == (True, TextPrompt("é x"))


async def test_streamed_logprobs_go_on_counting(tmp_path: Path) -> None:
    """The lists of all the chunks of a choice, one after the other, are those of the whole answer."""
    script = Script(pieces=["ab", b"\xe2\x82", b"\xac", "c"])
    async with served(tmp_path, FakeService(script=script)) as front:
        body = {"prompt": "x", "logprobs": 2, "n": 2}
        whole = (await front.post(COMPLETIONS, body)).json["choices"][1]["logprobs"]
        streamed: dict[str, list[Any]] = {name: [] for name in whole}
        for event in (await front.post(COMPLETIONS, {**body, "stream": True})).events[:-1]:
            for choice in event["choices"]:
                if choice["index"] == 1 and choice["logprobs"]:
                    for name, values in choice["logprobs"].items():
                        streamed[name] += values
        assert streamed == whole
        assert whole["tokens"] == ["ab", "bytes:\\xe2\\x82", "bytes:\\xac", "c"]
        assert whole["text_offset"] == [0, 2, 2, 3]


async def test_best_of_answers_the_likeliest(tmp_path: Path) -> None:
    """More are generated than answered; those with the best mean log-probability stay, and all of them are paid for."""
    async with served(tmp_path, FakeService(script=Script(pieces=["w"]))) as front:
        answer = await front.post(COMPLETIONS, {"prompt": "x", "best_of": 4, "n": 2, "logprobs": 0})
        choices = answer.json["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert [choice["logprobs"]["token_logprobs"] for choice in choices] == [[-0.125], [-0.5 / 3]]
        assert answer.json["usage"]["completion_tokens"] == 4
        unasked = await front.post(COMPLETIONS, {"prompt": "x", "best_of": 4})
        assert unasked.json["choices"][0]["logprobs"] is None


async def test_max_tokens_defaults_to_sixteen(front: Served) -> None:
    """As OpenAI's legacy endpoint has it."""
    answer = await front.post(COMPLETIONS, {"prompt": " ".join("abcdefghijklmnopqrstuvwxyz")})
    assert answer.json["choices"][0]["text"] == "abcdefghijklmnop"
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_echo_alone_generates_nothing(front: Served) -> None:
    """`max_tokens: 0` with echo scores a prompt."""
    answer = await front.post(COMPLETIONS, {"prompt": "a b", "echo": True, "max_tokens": 0, "logprobs": 0})
    assert answer.status == 200
    assert front.service.generations[0].max_tokens == 0


async def test_openai_client_completes_and_streams(front: Served) -> None:
    """The official client reads both kinds of answer."""
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.completions.create(model="light", prompt=["a b", "c"])
        assert [choice.text for choice in whole.choices] == ["ab", "c"]
        stream = await client.completions.create(model="light", prompt="a b", stream=True)
        assert "".join([event.choices[0].text async for event in stream]) == "ab"
        with pytest.raises(openai.BadRequestError) as error:
            await client.completions.create(model="light", prompt="x", suffix="y")
        assert error.value.code == "unsupported_operation"
