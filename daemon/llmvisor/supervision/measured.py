"""Notes what each load takes, from what runtimes tell of themselves: seconds, and the most memory its worker had."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store.measures import LoadKey

_log = get_logger(__name__)


class MeasureRecords(Protocol):
    """Where measures are kept: `store.measures.MeasureRows`. Everything raises `StoreUnavailable`."""

    async def add_load(self, key: LoadKey, *, load_seconds: float, rss_bytes: int, now: datetime) -> None: ...

    async def raise_peak(self, key: LoadKey, rss_bytes: int) -> None: ...


class _Worker(msgspec.Struct):
    """One worker's life as far as it was told."""

    pid: int
    key: LoadKey
    loaded: bool = False
    rss_bytes: int = 0
    rss_bytes_saved: int = 0


class LoadMeasurer:
    """Told of every change of every runtime; `config` gives a model's configuration, None for one that has gone."""

    def __init__(self, records: MeasureRecords, *, config: Callable[[str], ModelConfig | None], clock: Clock) -> None:
        self._records = records
        self._config = config
        self._clock = clock
        self._workers: dict[str, _Worker] = {}
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
            worker = self._workers[status.model] = _Worker(status.pid, key)
        worker.rss_bytes = max(worker.rss_bytes, status.memory or 0)
        if status.load_seconds is not None and not worker.loaded:
            worker.loaded = True
            worker.rss_bytes_saved = worker.rss_bytes
            now = self._clock.now()
            add = self._records.add_load(
                worker.key, load_seconds=status.load_seconds, rss_bytes=worker.rss_bytes, now=now
            )
            self._write(add)
        elif worker.rss_bytes > worker.rss_bytes_saved * limits.load_peak_growth_ratio_min:
            self._save_peak(worker)

    async def close(self) -> None:
        """Wait for what is being written, within a bound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.store_close_seconds_max):
                while self._last is not None:
                    await asyncio.wait([self._last])

    def _save_peak(self, worker: _Worker) -> None:
        if worker.loaded and worker.rss_bytes > worker.rss_bytes_saved:
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
