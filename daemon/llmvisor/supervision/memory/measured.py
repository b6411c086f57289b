"""Notes what each load takes, from what runtimes tell of themselves: seconds, and the most memory its worker had."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

import msgspec

from llmvisor.clock import Clock
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store import limits
from llmvisor.store.measures import LoadKey, LoadMeasure

_log = get_logger(__name__)


class MeasureRecords(Protocol):
    """Where measures are kept: `store.measures.MeasureRows`. Everything raises `StoreUnavailable`."""

    async def add_load(self, key: LoadKey, *, load_seconds: float, rss_bytes: int, now: datetime) -> None: ...

    async def raise_peak(self, key: LoadKey, rss_bytes: int) -> None: ...


class LoadHistory:
    """What loads have taken, of all that the store knew at the start and that came since: nobody who asks waits."""

    def __init__(self) -> None:
        self._measures: dict[LoadKey, LoadMeasure] = {}
        self._names: set[str] = set()

    def restore(self, measures: Iterable[LoadMeasure]) -> None:
        """What the store has. Later than the first loads, perhaps, which know better."""
        for measure in measures:
            key = LoadKey(measure.model, measure.backend, measure.options_sha256)
            newer = self._measures.setdefault(key, measure)
            peak = max(newer.rss_bytes_peak, measure.rss_bytes_peak)
            self._measures[key] = msgspec.structs.replace(newer, rss_bytes_peak=peak)
            self._names.add(key.model)

    def loaded(self, key: LoadKey, *, load_seconds: float, rss_bytes: int, now: datetime) -> None:
        """A load has succeeded; `rss_bytes` is 0 while its worker's memory is unknown."""
        before = self._measures.get(key)
        self._measures[key] = LoadMeasure(
            model=key.model,
            backend=key.backend,
            options_sha256=key.options_sha256,
            loads=1 + (before.loads if before else 0),
            load_seconds=load_seconds,
            load_seconds_max=max(load_seconds, before.load_seconds_max if before else 0),
            rss_bytes_peak=max(rss_bytes, before.rss_bytes_peak if before else 0),
            measured_at=now.isoformat(),
        )
        self._names.add(key.model)
        if len(self._measures) > limits.load_measures_max:
            del self._measures[min(self._measures, key=lambda each: self._measures[each].measured_at)]

    def grown(self, key: LoadKey, rss_bytes: int) -> None:
        """A worker has so much memory."""
        measure = self._measures.get(key)
        if measure is not None and rss_bytes > measure.rss_bytes_peak:
            self._measures[key] = msgspec.structs.replace(measure, rss_bytes_peak=rss_bytes)

    def knows(self, model: str) -> bool:
        """Whether there is anything of a model."""
        return model in self._names

    def find(self, key: LoadKey) -> LoadMeasure | None:
        return self._measures.get(key)


class _Worker(msgspec.Struct):
    """One worker's life as far as it was told."""

    pid: int
    key: LoadKey
    loaded: bool = False
    measured: bool = False
    """Whether its memory has been looked at since it was loaded: before, it had not got all of it."""
    rss_bytes: int = 0
    rss_bytes_saved: int = 0


class LoadMeasurer:
    """Told of every change of every runtime; `config` gives a model's configuration, None for one that has gone."""

    def __init__(
        self,
        records: MeasureRecords,
        *,
        config: Callable[[str], ModelConfig | None],
        clock: Clock,
        history: LoadHistory | None = None,
    ) -> None:
        self._records = records
        self._history = history or LoadHistory()
        self._config = config
        self._clock = clock
        self._workers: dict[str, _Worker] = {}
        self.kept: set[int] = set()
        """Workers by pid that an earlier run of this process loaded, and measured."""
        self._last: asyncio.Task[None] | None = None
        self._waiting = 0

    def observe(self, status: RuntimeStatus) -> None:
        """Belongs on the loop, and never waits."""
        worker = self._workers.get(status.model)
        if worker is not None and worker.pid != status.pid:
            del self._workers[status.model]
            self._save_peak(worker)
            worker = None
        if worker is None:
            config = self._config(status.model)
            if status.pid is None or config is None:
                return
            key = LoadKey(status.model, status.backend, options_sha256(config))
            worker = self._workers[status.model] = _Worker(status.pid, key, loaded=status.pid in self.kept)
        worker.rss_bytes = max(worker.rss_bytes, status.memory or 0)
        if status.load_seconds is not None and not worker.loaded:
            worker.loaded = True
            self._loaded(worker, status.load_seconds)
        worker.measured = worker.measured or (worker.loaded and status.phase not in {None, "load"})
        if worker.measured:
            self._history.grown(worker.key, worker.rss_bytes)
            if worker.rss_bytes > worker.rss_bytes_saved * limits.load_peak_growth_ratio_min:
                self._save_peak(worker)

    def _loaded(self, worker: _Worker, seconds: float) -> None:
        now = self._clock.now()
        self._history.loaded(worker.key, load_seconds=seconds, rss_bytes=0, now=now)
        self._write(self._records.add_load(worker.key, load_seconds=seconds, rss_bytes=0, now=now))

    async def close(self) -> None:
        """Wait for what is being written, within a bound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.store_close_seconds_max):
                while self._last is not None:
                    await asyncio.wait([self._last])

    def _save_peak(self, worker: _Worker) -> None:
        if worker.measured and worker.rss_bytes > worker.rss_bytes_saved:
            worker.rss_bytes_saved = worker.rss_bytes
            self._write(self._records.raise_peak(worker.key, worker.rss_bytes))

    def _write(self, write: Coroutine[Any, Any, None]) -> None:
        """One after another; while the store hangs, measures are left out rather than piled up."""
        if self._waiting >= limits.load_measures_waiting_max:
            write.close()
            return
        before = self._last
        self._waiting += 1

        async def in_turn() -> None:
            if before is not None:
                await asyncio.wait([before])
            try:
                await write
            except StoreUnavailable as error:
                _log.debug("a load's measures were not written", reason=str(error))

        self._last = asyncio.get_running_loop().create_task(in_turn(), name="load measures")
        self._last.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._waiting -= 1
        if self._last is task:
            self._last = None


def options_sha256(config: ModelConfig) -> str:
    """Changes with all that a worker is told about loading: the model's path, and its options."""
    return hashlib.sha256(msgspec.msgpack.encode((config.path, config.model_options()), order="sorted")).hexdigest()
