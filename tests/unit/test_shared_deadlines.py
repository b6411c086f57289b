"""Deadlines and the runs that several requests share: each has its own, and the run goes on for the others."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fake_service import FakeService, Script
from tests.support.fake_worker import FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.cache.store import make_cache
from llmvisor.clock import SystemClock
from llmvisor.config.tree import Cache
from llmvisor.errors import RequestTimeout
from llmvisor.services.cached import CachedService
from llmvisor.services.service import EmbeddingRequest, Generation, SamplingRequest, Stream, Terms
from llmvisor_runtimes.protocol import Cancel, Delta, Done, LoadProgress, Step, TextPrompt

GREEDY = SamplingRequest(temperature=0)


def cached(script: Script) -> tuple[CachedService, FakeService]:
    service = FakeService(script=script)
    return CachedService(service, make_cache(Cache(), SystemClock()), touch=lambda: None), service


def asked(seconds: float | None = None) -> Generation:
    """The same question, wanted within so many seconds."""
    deadline = None if seconds is None else SystemClock().monotonic() + seconds
    return Generation("req_1", TextPrompt("hello"), GREEDY, terms=Terms(deadline=deadline))


async def text_of(stream: Stream) -> str:
    async with stream:
        return "".join([delta.text async for deltas in stream for delta in deltas])


async def test_follower_times_out_alone() -> None:
    """1. Two ask the same, one of them with little time. Result: that one gets `timeout`, the other its answer."""
    gate = asyncio.Event()
    service, fake = cached(Script(gate=gate))
    patient = asyncio.create_task(text_of(service.generate("smol", asked())))
    await asyncio.sleep(0)
    with pytest.raises(RequestTimeout):
        await text_of(service.generate("smol", asked(0.05)))
    gate.set()
    assert await patient == "Hello world!"
    assert len(fake.generations) == 1


async def test_run_goes_on_for_a_follower_when_the_first_times_out() -> None:
    """The first's deadline is not the run's."""
    gate = asyncio.Event()
    service, fake = cached(Script(gate=gate))
    hasty = asyncio.create_task(text_of(service.generate("smol", asked(0.05))))
    await asyncio.sleep(0)
    patient = asyncio.create_task(text_of(service.generate("smol", asked())))
    with pytest.raises(RequestTimeout):
        await hasty
    gate.set()
    assert await patient == "Hello world!"
    assert fake.generations[0].terms.deadline is None


async def test_run_that_nobody_waits_for_any_more_ends() -> None:
    service, fake = cached(Script(gate=asyncio.Event()))
    with pytest.raises(RequestTimeout):
        await text_of(service.generate("smol", asked(0.05)))
    await eventually(lambda: fake.cancelled == ["req_1"])


async def test_shared_embeddings_time_out_alone_too() -> None:
    gate = asyncio.Event()
    service, _ = cached(Script(gate=gate))
    request = EmbeddingRequest("req_1", ["a"], ["dense"])
    hasty_terms = Terms(deadline=SystemClock().monotonic() + 0.05)
    hasty = asyncio.create_task(service.embed("bge", EmbeddingRequest("req_2", ["a"], ["dense"], terms=hasty_terms)))
    await asyncio.sleep(0)
    patient = asyncio.create_task(service.embed("bge", request))
    with pytest.raises(RequestTimeout):
        await hasty
    gate.set()
    assert (await patient).items[0].tokens == 1


async def test_terms_are_no_part_of_what_is_asked() -> None:
    """Whoever asks, and how urgently: the answer is the same one."""
    service, fake = cached(Script())
    await text_of(service.generate("smol", asked()))
    other = Generation("req_2", TextPrompt("hello"), GREEDY, terms=Terms("b", "high", 1e12, False))
    stream = service.generate("smol", other)
    assert await text_of(stream) == "Hello world!"
    assert (stream.cache, len(fake.generations)) == ("hit", 1)


# -------------------------------------------------------------------------------------------------- in the actor


async def test_running_generation_expires_and_the_worker_is_told() -> None:
    """1. It runs. 2. Its time is over. Result: whoever reads gets `timeout`, the worker a cancel; its place is free
    once the worker says so."""
    world = FakeWorld(parallel=2)
    worker = await world.loaded()
    deadline = world.clock.at + 5
    stream = world.runtime.generate(
        Generation("req_1", TextPrompt("hello"), SamplingRequest(), terms=Terms(deadline=deadline))
    )
    worker.report(Step([Delta(stream.id, 0, "a", [1])], []))
    world.clock.at = deadline
    world.runtime._wake()  # pyright: ignore[reportPrivateUsage]  # the alarm of a clock that stands still never rings
    assert Cancel(stream.id) in worker.sent
    with pytest.raises(RequestTimeout):
        await text_of(stream)
    assert world.runtime.in_flight == 1
    worker.report(Step([Delta(stream.id, 0, "", [], "cancelled")], [Done(stream.id, 1, 0, 1, 1.0, 1.0)]))
    assert world.runtime.in_flight == 0


async def test_waiting_generation_tells_its_place_and_the_load() -> None:
    """While the model loads, while it waits for a place, and nothing once it runs."""
    world = FakeWorld()
    first, second, third = (world.runtime.generate(generation()) for _ in range(3))
    worker = await world.worker()
    assert third.waits_for() == "loading, position 3 of 3"
    worker.report(LoadProgress("weights", 40, 100, "bytes"))
    assert third.waits_for() == "loading 40 %, position 3 of 3"
    worker.load()
    assert [stream.waits_for() for stream in (first, second, third)] == ["", "", "position 1 of 1"]
