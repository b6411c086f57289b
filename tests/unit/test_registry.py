"""Searches of registries: made once for all who ask, kept for a while, and shown with what fits in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from pathlib import Path

import pytest
from tests.support.fake_worker import FakeClock
from tests.support.polling import eventually

from llmvisor.config.tree import Registries
from llmvisor.control.api import FoundModel
from llmvisor.errors import QueueFull, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Found, SearchRequest
from llmvisor.models import limits
from llmvisor.models.registry import Registry, RegistryName, memory_needed
from llmvisor.store.registry import FoundRow, RegistryRows
from llmvisor.store.store import Store

GIB = 1024**3


def model(id: str, registry: RegistryName = "huggingface", **fields: object) -> FoundModel:
    return FoundModel(registry, id, f"{registry}:{id}", **fields)  # pyright: ignore[reportArgumentType]


class FakeSearcher:
    """Answers by registry; waits for `gate` where there is one."""

    def __init__(self) -> None:
        self.asked: list[SearchRequest] = []
        self.answers: dict[str, list[FoundModel] | Exception] = {"huggingface": [], "ollama": []}
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def search(self, request: SearchRequest) -> Found:
        self.asked.append(request)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self.answers[request.registry]
        if isinstance(answer, Exception):
            raise answer
        return Found(answer)


class NoRows:
    """A store on a full disk."""

    async def put(self, registry: str, query: str, models: object, *, fetched_at: datetime) -> None:
        raise StoreUnavailable("the disk is full")

    async def search(self, registry: str, query: str, *, since: datetime) -> list[FoundRow] | None:
        raise StoreUnavailable("the disk is full")


@pytest.fixture
def searcher() -> FakeSearcher:
    return FakeSearcher()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Make = Callable[[], Registry]


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[Store]:
    store = Store(tmp_path / "llmvisor.db", clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def make(searcher: FakeSearcher, clock: FakeClock, store: Store) -> Make:
    def build() -> Registry:
        rows = RegistryRows(store)
        return Registry(searcher, rows, registries=Registries(), memory_bytes=lambda: 8 * GIB, clock=clock)

    return build


async def test_search_is_answered_from_the_store_for_a_while(
    make: Make, searcher: FakeSearcher, clock: FakeClock
) -> None:
    """By any daemon on this store, whatever the case and spaces; then it is asked again."""
    searcher.answers["huggingface"] = [model("o/b", likes=3, tags=["gguf"]), model("o/a")]
    first = await make().search("Qwen  3", registry="huggingface", limit=20)
    again = await make().search(" qwen 3 ", registry="huggingface", limit=20)
    assert again == first
    assert [(one.id, one.likes, one.tags) for one in first] == [("o/b", 3, ["gguf"]), ("o/a", None, [])]
    assert len(searcher.asked) == 1
    clock.at += limits.search_keep_seconds + 1
    searcher.answers["huggingface"] = [model("o/c")]
    assert [one.id for one in await make().search("qwen 3", registry="huggingface", limit=20)] == ["o/c"]


async def test_both_registries_are_shown_by_turns(make: Make, searcher: FakeSearcher) -> None:
    """So that a limit leaves some of each."""
    searcher.answers["huggingface"] = [model("o/1"), model("o/2"), model("o/3")]
    searcher.answers["ollama"] = [model("one", "ollama")]
    found = await make().search("x", registry=None, limit=3)
    assert [one.id for one in found] == ["o/1", "one", "o/2"]


async def test_registry_that_fails_leaves_the_other(make: Make, searcher: FakeSearcher) -> None:
    """Unless it is the one that was asked, or both fail."""
    searcher.answers["huggingface"] = [model("o/1")]
    searcher.answers["ollama"] = FetchProblem("invalid", "no page", hint="look yourself")
    assert [one.id for one in await make().search("x", registry=None, limit=20)] == ["o/1"]
    with pytest.raises(FetchProblem, match="no page"):
        await make().search("x", registry="ollama", limit=20)
    searcher.answers["huggingface"] = FetchProblem("network", "away", hint="wait")
    with pytest.raises(FetchProblem, match="away"):
        await make().search("y", registry=None, limit=20)


async def test_old_answer_serves_while_the_registry_is_away(
    make: Make, searcher: FakeSearcher, clock: FakeClock
) -> None:
    """With the time that it is from."""
    searcher.answers["huggingface"] = [model("o/1")]
    before = await make().search("x", registry="huggingface", limit=20)
    clock.at += 10 * limits.search_keep_seconds
    searcher.answers["huggingface"] = FetchProblem("network", "away", hint="wait")
    assert await make().search("x", registry="huggingface", limit=20) == before


async def test_store_that_cannot_be_used_is_done_without(searcher: FakeSearcher, clock: FakeClock) -> None:
    """Each search is asked then."""
    registry = Registry(searcher, NoRows(), registries=Registries(), memory_bytes=lambda: GIB, clock=clock)
    searcher.answers["huggingface"] = [model("o/1")]
    for _ in range(2):
        assert [one.id for one in await registry.search("x", registry="huggingface", limit=20)] == ["o/1"]
    assert len(searcher.asked) == 2


async def test_same_words_at_once_are_asked_for_once(make: Make, searcher: FakeSearcher) -> None:
    """Who leaves takes nothing away from who stays."""
    searcher.gate = asyncio.Event()
    searcher.answers["huggingface"] = [model("o/1")]
    registry = make()
    tasks = [asyncio.create_task(registry.search("x", registry="huggingface", limit=20)) for _ in range(3)]
    await eventually(lambda: len(searcher.asked) == 1)
    tasks[0].cancel()
    searcher.gate.set()
    assert [one.id for one in await tasks[1]] == [one.id for one in await tasks[2]] == ["o/1"]
    assert len(searcher.asked) == 1


async def test_too_many_searches_are_refused(make: Make, searcher: FakeSearcher) -> None:
    """Of different words; few run at a time, some wait, and the rest is told to come again."""
    searcher.gate = asyncio.Event()
    registry = make()
    words = range(limits.searches_pending_max)
    tasks = [asyncio.create_task(registry.search(f"w{n}", registry="ollama", limit=20)) for n in words]
    await eventually(lambda: len(searcher.asked) == limits.searches_at_once_max)
    with pytest.raises(QueueFull):
        await registry.search("one more", registry="ollama", limit=20)
    searcher.gate.set()
    assert await asyncio.gather(*tasks) == [[]] * len(tasks)


async def test_close_ends_what_runs(make: Make, searcher: FakeSearcher) -> None:
    """The daemon's end waits for no registry."""
    searcher.gate = asyncio.Event()
    registry = make()
    task = asyncio.create_task(registry.search("x", registry="ollama", limit=20))
    await eventually(lambda: len(searcher.asked) == 1)
    await registry.close()
    assert searcher.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_models_are_marked_by_what_fits(make: Make, searcher: FakeSearcher) -> None:
    """By size where it is said, by parameters in the default quantisation else, and not at all without either."""
    searcher.answers["huggingface"] = [
        model("small", size=4 * GIB),
        model("large", size=8 * GIB),
        model("8b", parameters=8_000_000_000, is_gguf=True),
        model("70b", parameters=70_000_000_000, is_gguf=True),
        model("unknown"),
        model("unsized", parameters=8_000_000_000),
    ]
    found = await make().search("x", registry="huggingface", limit=20)
    assert {one.id: one.fits for one in found} == {
        "small": True,
        "large": False,
        "8b": True,
        "70b": False,
        "unknown": None,
        "unsized": None,
    }


def test_memory_is_more_than_the_weights() -> None:
    """A model also needs room to compute in."""
    assert (memory_needed(model("a", size=GIB)) or 0) > GIB
