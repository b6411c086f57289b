"""What can be installed: the registries' searches, each made by a fetch process and kept in the store for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from typing import Final, Literal, Protocol

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import Registries
from llmvisor.control.api import FoundModel, RegistryModel
from llmvisor.errors import LlmvisorError, QueueFull, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Found, SearchRequest
from llmvisor.log import get_logger
from llmvisor.models import limits as model_limits
from llmvisor.store.registry import FoundRow

RegistryName = Literal["huggingface", "ollama"]
REGISTRIES: Final[tuple[RegistryName, ...]] = ("huggingface", "ollama")

_BITS_PER_WEIGHT: Final = 5
"""Of the quantisation that is installed by default, a little rounded up."""
_BEYOND_WEIGHTS: Final = 1.15
"""What a model takes beside its weights: cache and buffers of a usual context."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_log = get_logger(__name__)


class Searcher(Protocol):
    async def search(self, request: SearchRequest) -> Found:
        """Raises `FetchProblem`, or another `LlmvisorError`."""
        ...


class SearchRows(Protocol):
    """See `store.registry.RegistryRows`. Every call raises `StoreUnavailable`."""

    async def put(self, registry: str, query: str, models: Sequence[FoundModel], *, fetched_at: datetime) -> None: ...

    async def search(self, registry: str, query: str, *, since: datetime) -> list[FoundRow] | None: ...


class Registry:
    """Searches. The same words asked for by several at once are asked for once."""

    def __init__(
        self,
        searcher: Searcher,
        rows: SearchRows,
        *,
        registries: Registries,
        memory_bytes: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._searcher = searcher
        self._rows = rows
        self._registries = registries
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._searches: dict[tuple[RegistryName, str], asyncio.Task[list[FoundRow]]] = {}
        self._at_once = asyncio.Semaphore(model_limits.searches_at_once_max)

    def configure(self, registries: Registries) -> None:
        """Other places are asked from now on."""
        self._registries = registries

    async def search(self, query: str, *, registry: RegistryName | None, limit: int) -> list[RegistryModel]:
        """What a registry, or both by turns, have for these words. With both, one that fails is left out.

        Raises `FetchProblem`, `QueueFull` or another `LlmvisorError`.
        """
        words = " ".join(query.split()).casefold()
        asked = REGISTRIES if registry is None else (registry,)
        answers = await asyncio.gather(*(self._found(one, words) for one in asked), return_exceptions=True)
        lists: list[list[FoundRow]] = []
        for name, answer in zip(asked, answers, strict=True):
            if not isinstance(answer, BaseException):
                lists.append(answer)
            elif not isinstance(answer, LlmvisorError) or all(isinstance(one, BaseException) for one in answers):
                raise answer
            else:
                _log.warning("a registry could not be searched", registry=name, error=str(answer))
        rows = [row for row in chain.from_iterable(zip_longest(*lists)) if row is not None]
        memory_bytes = self._memory_bytes()
        return [_shown(row, memory_bytes) for row in rows[:limit]]

    async def close(self) -> None:
        """End the searches that run."""
        for task in self._searches.values():
            task.cancel()
        await asyncio.gather(*self._searches.values(), return_exceptions=True)

    async def _found(self, registry: RegistryName, words: str) -> list[FoundRow]:
        key = (registry, words)
        if (task := self._searches.get(key)) is None:
            if len(self._searches) >= model_limits.searches_pending_max:
                raise QueueFull("too many searches at once", retry_after_seconds=limits.retry_after_seconds)
            task = self._searches[key] = asyncio.create_task(self._look(registry, words), name=f"search {registry}")
            task.add_done_callback(lambda _: self._searches.pop(key, None))
        # Who leaves takes nothing away from the others; and the answer is kept for the next one.
        return await asyncio.shield(task)

    async def _look(self, registry: RegistryName, words: str) -> list[FoundRow]:
        place = self._registries.ollama_library if registry == "ollama" else self._registries.huggingface or ""
        kept_as = f"{words} {place}".strip()
        since = self._clock.now() - timedelta(seconds=model_limits.search_keep_seconds)
        if (kept := await self._kept(registry, kept_as, since)) is not None:
            return kept
        try:
            models = await self._asked(registry, words)
        except FetchProblem as problem:
            old = await self._kept(registry, kept_as, _EPOCH) if problem.kind == "network" else None
            if old is None:
                raise
            _log.warning("a registry cannot be reached: what it had earlier is shown", registry=registry)
            return old
        now = self._clock.now()
        try:
            await self._rows.put(registry, kept_as, models, fetched_at=now)
        except StoreUnavailable as error:
            _log.warning("a search cannot be kept", error=str(error))
        return [FoundRow(model, now.isoformat()) for model in models]

    async def _kept(self, registry: RegistryName, kept_as: str, since: datetime) -> list[FoundRow] | None:
        try:
            return await self._rows.search(registry, kept_as, since=since)
        except StoreUnavailable:
            return None  # the store says so itself

    async def _asked(self, registry: RegistryName, words: str) -> list[FoundModel]:
        request = SearchRequest(
            words,
            registry,
            limit=model_limits.search_results_max,
            huggingface_endpoint=self._registries.huggingface,
            ollama_library=self._registries.ollama_library,
        )
        try:
            async with asyncio.timeout(model_limits.search_seconds_max), self._at_once:
                return (await self._searcher.search(request)).models
        except TimeoutError as error:
            message = f"{registry} has not answered within {model_limits.search_seconds_max:g} s"
            raise FetchProblem("network", message, hint="try again, or look at its web page") from error


def memory_needed(model: FoundModel) -> int | None:
    """Bytes that a model takes as it would be installed; None where its registry says neither size nor parameters."""
    if model.size is not None:
        return int(model.size * _BEYOND_WEIGHTS)
    if model.parameters is not None and model.is_gguf:
        return int(model.parameters * _BITS_PER_WEIGHT / 8 * _BEYOND_WEIGHTS)
    return None


def _shown(row: FoundRow, memory_bytes: int) -> RegistryModel:
    needed = memory_needed(row.model)
    return RegistryModel(
        **msgspec.structs.asdict(row.model),
        fits=None if needed is None else needed <= memory_bytes,
        fetched_at=row.fetched_at,
    )
