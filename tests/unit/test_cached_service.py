"""The same question gets the same answer without being computed again, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

import msgspec
import pytest

from llmvisor import limits
from llmvisor.cache.store import ResponseCache
from llmvisor.errors import RuntimeCrashed
from llmvisor.services.cached import CachedService
from llmvisor.services.service import (
    CacheState,
    Embedded,
    EmbeddingRequest,
    Generation,
    ModelIdentity,
    SamplingRequest,
    Scored,
    ScoringRequest,
    Terms,
)
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Delta, Done, Embedding, Sampling, TextPrompt, Tool

GREEDY = SamplingRequest(temperature=0)


class RunStream:
    """A generation whose deltas come when the test lets them."""

    queue_ms = load_ms = 1.0
    cache: CacheState = "off"

    def __init__(self, number: int) -> None:
        self.done: Done | None = None
        self.waits_for: Callable[[], str] = str
        self.go = asyncio.Event()
        self.left = False
        self.error: Exception | None = None
        self._number = number
        self.deltas: Callable[[RunStream], AsyncIterator[Sequence[Delta]]] = self._deltas

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        async for batch in self.deltas(self):
            yield batch

    async def _deltas(self, _: RunStream) -> AsyncIterator[Sequence[Delta]]:
        yield [Delta(1, 0, f"run {self._number}", [1])]
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.done = Done(1, 3, 0, 2, 1.0, 1.0)
        yield [Delta(1, 0, ".", [2], "stop")]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.left = True


class Counted:
    """A service that counts what it has to compute."""

    name = "counted"

    def __init__(self) -> None:
        self.runs: list[RunStream] = []
        self.calls = 0
        self.go = asyncio.Event()
        self.fingerprint = "one"
        self.touched = 0

    def touch(self) -> None:
        self.touched += 1

    def identity(self, model: str) -> ModelIdentity:
        return ModelIdentity(self.fingerprint, Sampling(temperature=0.7), 100)

    def generate(self, model: str, generation: Generation) -> RunStream:
        self.runs.append(RunStream(len(self.runs)))
        return self.runs[-1]

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        self.calls += 1
        await self.go.wait()
        return Embedded(items=[Embedding(1, b"1234")])

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        self.calls += 1
        await self.go.wait()
        return Scored(scores=[1.0], tokens=3)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def service(counted: Counted) -> CachedService:
    cache = ResponseCache(entries_max=10, ttl_seconds=60, now=lambda: 0.0)
    return CachedService(counted, cache, touch=counted.touch)  # pyright: ignore[reportArgumentType] - what these tests need of a service


def asked(text: str = "hello", *, sampling: SamplingRequest = GREEDY, **fields: Any) -> Generation:
    return Generation(request_id="r", prompt=TextPrompt(text), sampling=sampling, **fields)


async def answer(service: CachedService, generation: Generation, model: str = "m") -> tuple[str, CacheState]:
    stream = service.generate(model, generation)
    async with stream:
        text = "".join([delta.text async for deltas in stream for delta in deltas])
    assert stream.done is not None
    assert stream.done.prompt_tokens == 3
    return text, stream.cache


async def test_same_question_is_answered_from_the_cache(service: CachedService, counted: Counted) -> None:
    """Whatever its request id: text, usage and all."""
    first = asyncio.ensure_future(answer(service, asked()))
    await asyncio.sleep(0)
    counted.runs[0].go.set()
    assert await first == ("run 0.", "miss")
    assert await answer(service, msgspec.structs.replace(asked(), request_id="other")) == ("run 0.", "hit")
    assert len(counted.runs) == 1


async def test_requests_at_the_same_time_share_one_run(service: CachedService, counted: Counted) -> None:
    """Both get every delta from the first on, as it comes."""
    first = service.generate("m", asked())
    second = service.generate("m", asked())
    async with first, second:
        firsts, seconds = aiter(first), aiter(second)
        assert [delta.text for delta in await anext(firsts)] == ["run 0"]
        assert [delta.text for delta in await anext(seconds)] == ["run 0"]
        counted.runs[0].go.set()
        assert [delta.text for delta in await anext(seconds)] == ["."]
        assert [delta.text for delta in await anext(firsts)] == ["."]
    assert (first.cache, second.cache) == ("miss", "coalesced")
    assert len(counted.runs) == 1


async def test_run_goes_on_for_those_who_stay_and_ends_with_the_last(service: CachedService, counted: Counted) -> None:
    first, second = service.generate("m", asked()), service.generate("m", asked())
    async with second:
        async with first:
            await anext(aiter(first))
        assert not counted.runs[0].left
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert counted.runs[0].left
    service.generate("m", asked())
    assert len(counted.runs) == 2, "what was abandoned is not joined any more"


async def test_answer_of_a_model_that_was_replaced_meanwhile_is_not_kept(
    service: CachedService, counted: Counted
) -> None:
    """The request may have waited for the next worker, which has other weights."""
    generated = asyncio.ensure_future(answer(service, asked()))
    embedded = asyncio.ensure_future(service.embed("m", EmbeddingRequest("r", ["a"], ["dense"])))
    await asyncio.sleep(0)
    counted.fingerprint = "two"
    counted.runs[0].go.set()
    counted.go.set()
    await asyncio.gather(generated, embedded)
    counted.fingerprint = "one"
    service.generate("m", asked())
    assert (len(counted.runs), counted.calls) == (2, 1)
    await service.embed("m", EmbeddingRequest("r", ["a"], ["dense"]))
    assert counted.calls == 2


async def test_run_that_asks_for_an_error_is_shared_by_nobody(service: CachedService, counted: Counted) -> None:
    """Where its worker ends it ends too, and that is nobody else's wish; it may share a run that goes on."""
    off = msgspec.structs.replace(asked(), terms=Terms(resume=False))
    streams = [service.generate("m", off), service.generate("m", asked()), service.generate("m", off)]
    assert len(counted.runs) == 2
    assert [stream.cache for stream in streams] == ["miss", "miss", "coalesced"]
    for run in counted.runs:
        run.go.set()
    for stream in streams:
        async with stream:
            assert [batch async for batch in stream]


async def test_run_that_fails_fails_for_all_and_is_not_kept(service: CachedService, counted: Counted) -> None:
    tasks = [asyncio.ensure_future(answer(service, asked())) for _ in range(2)]
    await asyncio.sleep(0)
    counted.runs[0].error = RuntimeCrashed("gone")
    counted.runs[0].go.set()
    for task in tasks:
        with pytest.raises(RuntimeCrashed):
            await task
    service.generate("m", asked())
    assert len(counted.runs) == 2


@pytest.mark.parametrize(
    "other",
    [
        asked("other"),
        asked(stop=["x"]),
        asked(max_tokens=5),
        asked(n=2),
        asked(logprobs=1),
        asked(sampling=SamplingRequest(temperature=0, logit_bias={7: -100.0})),
        asked(sampling=SamplingRequest(temperature=0, top_k=1)),
        asked(sampling=SamplingRequest(temperature=0.7, seed=1)),
    ],
)
async def test_another_question_is_another_run(service: CachedService, counted: Counted, other: Generation) -> None:
    service.generate("m", asked())
    service.generate("m", other)
    assert len(counted.runs) == 2


@pytest.mark.parametrize(
    "same",
    [
        asked(max_tokens=100),
        asked(keep_alive_seconds=5),
        asked(cache_prompt=False),
        asked(sampling=SamplingRequest(temperature=0, top_p=Sampling().top_p)),
    ],
)
async def test_what_changes_no_answer_changes_no_key(
    service: CachedService, counted: Counted, same: Generation
) -> None:
    """A default that is spelled out, and how the run is carried out."""
    service.generate("m", asked())
    service.generate("m", same)
    assert len(counted.runs) == 1


async def test_order_of_json_keys_has_no_effect(service: CachedService, counted: Counted) -> None:
    for kwargs in (b'{"a":1,"b":2}', b'{ "b":2, "a":1 }'):
        service.generate("m", _chat(kwargs))
    assert len(counted.runs) == 1


def _chat(kwargs: bytes = b"{}", tools: Sequence[Tool] = ()) -> Generation:
    prompt = ChatPrompt([ChatMessage("user", "hi")], template_kwargs=kwargs, tools=list(tools))
    return Generation(request_id="r", prompt=prompt, sampling=GREEDY)


@pytest.mark.parametrize(
    "never",
    [
        asked(sampling=SamplingRequest()),
        asked(sampling=SamplingRequest(temperature=1.0)),
        asked(cache="no-store"),
        _chat(tools=[Tool("look")]),
    ],
)
async def test_answers_that_differ_each_time_and_tool_calls_are_not_shared(
    service: CachedService, counted: Counted, never: Generation
) -> None:
    assert service.generate("m", never).cache == "off"
    service.generate("m", never)
    assert len(counted.runs) == 2


async def test_no_cache_computes_again_and_keeps_the_new_answer(service: CachedService, counted: Counted) -> None:
    for generation in (asked(), asked(cache="no-cache")):
        task = asyncio.ensure_future(answer(service, generation))
        await asyncio.sleep(0)
        counted.runs[-1].go.set()
        await task
    assert await answer(service, asked()) == ("run 1.", "hit")


async def test_changed_model_file_is_another_model(service: CachedService, counted: Counted) -> None:
    service.generate("m", asked())
    counted.fingerprint = "two"
    service.generate("m", asked())
    assert len(counted.runs) == 2


async def test_embeddings_and_scores_are_shared_and_kept(service: CachedService, counted: Counted) -> None:
    embed = EmbeddingRequest("r", ["a"], ["dense"])
    score = ScoringRequest("r", [("a", "b")])
    tasks = [asyncio.ensure_future(service.embed("m", embed)) for _ in range(2)]
    tasks_score = [asyncio.ensure_future(service.score("m", score)) for _ in range(2)]
    await asyncio.sleep(0)
    counted.go.set()
    embedded, scored = await asyncio.gather(*tasks), await asyncio.gather(*tasks_score)
    assert [one.cache for one in embedded] == ["miss", "coalesced"]
    assert [one.cache for one in scored] == ["miss", "coalesced"]
    assert counted.calls == 2
    again = await service.embed("m", embed)
    assert (again.cache, again.items) == ("hit", embedded[0].items)
    assert (await service.score("m", score)).cache == "hit"
    assert counted.calls == 2


async def test_shared_embedding_is_cancelled_with_the_last_who_waits(service: CachedService, counted: Counted) -> None:
    embed = EmbeddingRequest("r", ["a"], ["dense"])
    first, second = (asyncio.ensure_future(service.embed("m", embed)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    counted.go.set()
    assert (await second).items
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_request_that_reaches_no_model_is_a_request_all_the_same(
    service: CachedService, counted: Counted
) -> None:
    """Whoever watches for the last request learns of answers from the cache too."""
    for _ in range(3):
        service.generate("m", asked())
    counted.go.set()
    await service.embed("m", EmbeddingRequest("r", ["a"], ["dense"]))
    assert counted.touched == 4


async def test_run_waits_for_its_fastest_reader(service: CachedService, counted: Counted) -> None:
    """1. Nobody reads. 2. Somebody does. Result: it stops at the bound, then goes on to its end."""
    bound = limits.stream_pause_deltas

    async def many(run: RunStream) -> AsyncIterator[Sequence[Delta]]:
        for number in range(4 * bound):
            yield [Delta(1, 0, str(number), [1])]
        run.done = Done(1, 3, 0, 2, 1.0, 1.0)

    stream = service.generate("m", asked())
    counted.runs[0].deltas = many
    for _ in range(3 * bound):
        await asyncio.sleep(0)
    async with stream:
        reader = aiter(stream)
        first = await anext(reader)
        assert len(first) == bound + 1
        assert sum([len(batch) async for batch in reader]) + len(first) == 4 * bound


async def test_run_abandoned_and_begun_anew_is_shared_still(service: CachedService, counted: Counted) -> None:
    """1. A request leaves. 2. The same comes again, twice. Result: those two share one run, and nothing is left."""
    embed = EmbeddingRequest("r", ["a"], ["dense"])
    first = asyncio.ensure_future(service.embed("m", embed))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.ensure_future(service.embed("m", embed))
    for _ in range(3):
        await asyncio.sleep(0)
    third = asyncio.ensure_future(service.embed("m", embed))
    for _ in range(3):
        await asyncio.sleep(0)
    counted.go.set()
    assert [(await second).cache, (await third).cache] == ["miss", "coalesced"]
    assert counted.calls == 2


async def test_error_of_a_shared_run_is_each_ones_own(service: CachedService, counted: Counted) -> None:
    """What one caller adds to it, another does not see."""
    tasks = [asyncio.ensure_future(answer(service, asked())) for _ in range(2)]
    await asyncio.sleep(0)
    counted.runs[0].error = RuntimeCrashed("gone")
    counted.runs[0].go.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["gone", "gone"]
    assert errors[0] is not errors[1]


async def test_model_without_its_file_is_not_cached(service: CachedService, counted: Counted) -> None:
    counted.fingerprint = ""
    assert service.generate("m", asked()).cache == "off"
