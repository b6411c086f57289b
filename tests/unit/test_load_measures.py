"""What is noted of each load, out of what the runtimes tell."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import msgspec
import pytest

from llmvisor.clock import SystemClock
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import ModelState, RuntimeStatus
from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits
from llmvisor.store.measures import LoadKey
from llmvisor.supervision.memory.measured import LoadHistory, LoadMeasurer, options_sha256

pytestmark = pytest.mark.usefixtures("leak_check")
CONFIG = ModelConfig(backend="mock", path="/models/a.gguf")


class Records:
    """See `supervision.measured.MeasureRecords`."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.broken = False

    async def add_load(self, key: LoadKey, *, load_seconds: float, rss_bytes: int, now: datetime) -> None:
        self._note("load", key.model, load_seconds, rss_bytes)

    async def raise_peak(self, key: LoadKey, rss_bytes: int) -> None:
        self._note("peak", key.model, rss_bytes)

    def _note(self, *call: object) -> None:
        if self.broken:
            raise StoreUnavailable("the disk is full")
        self.calls.append(call)


def status(
    state: str,
    pid: int | None,
    *,
    memory: int | None = None,
    seconds: float | None = None,
    phase: str = "idle",
) -> RuntimeStatus:
    return RuntimeStatus(
        id="m", model="m", tier=None, backend="mock", state=cast("ModelState", state), since="", pid=pid,
        memory=memory, load_seconds=seconds, phase=phase,
    )  # fmt: skip


async def measured(
    *told: RuntimeStatus, broken: bool = False, history: LoadHistory | None = None
) -> list[tuple[object, ...]]:
    records = Records()
    records.broken = broken
    measurer = LoadMeasurer(records, config=lambda _: CONFIG, clock=SystemClock(), history=history)
    for each in told:
        measurer.observe(each)
    await measurer.close()
    return records.calls


async def test_load_is_noted_once_with_its_time_and_then_its_memory() -> None:
    """The most that was seen, while loading too, is noted once the worker has been looked at since: a look from before
    may have missed nearly all of it."""
    calls = await measured(
        status("loading", None),
        status("loading", 7, memory=400, phase="load"),
        status("loading", 7, memory=300, phase="load"),
        status("loaded", 7, memory=300, seconds=2.5, phase="load"),
        status("loaded", 7, memory=350, seconds=2.5),
        status("busy", 7, memory=410, seconds=2.5),
    )
    assert calls == [("load", "m", 2.5, 0), ("peak", "m", 400)]


async def test_growth_and_the_last_peak_are_noted() -> None:
    """Memory is written again when it has grown by a part, and at the worker's end whatever it had most."""
    assert limits.load_peak_growth_ratio_min == 1.1
    calls = await measured(
        status("loaded", 7, memory=100, seconds=1.0),
        status("busy", 7, memory=150, seconds=1.0),
        status("busy", 7, memory=155, seconds=1.0),
        status("busy", 7, memory=90, seconds=1.0),
        status("not_loaded", None),
    )
    assert calls == [("load", "m", 1.0, 0), ("peak", "m", 100), ("peak", "m", 150), ("peak", "m", 155)]


async def test_each_worker_is_a_load_of_its_own() -> None:
    """A worker that replaces a crashed one is measured again."""
    calls = await measured(status("loaded", 7, memory=100, seconds=1.0), status("loaded", 8, memory=50, seconds=2.0))
    assert calls == [("load", "m", 1.0, 0), ("peak", "m", 100), ("load", "m", 2.0, 0), ("peak", "m", 50)]


async def test_history_knows_at_once_what_the_store_is_told() -> None:
    """Whoever estimates a load waits for no disk, and what the store had before counts as well."""
    history = LoadHistory()
    key = LoadKey("m", "mock", options_sha256(CONFIG))
    await measured(
        status("loaded", 7, memory=100, seconds=1.0), status("busy", 7, memory=105, seconds=1.0), history=history
    )
    found = history.find(key)
    assert found is not None
    assert (found.load_seconds, found.rss_bytes_peak, found.loads) == (1.0, 105, 1)
    history.restore([msgspec.structs.replace(found, load_seconds=9.0, rss_bytes_peak=300)])
    found = history.find(key)
    assert found is not None
    assert (found.load_seconds, found.rss_bytes_peak) == (1.0, 300)


async def test_load_that_failed_is_not_noted() -> None:
    """What was never loaded has no load time."""
    assert await measured(status("loading", 7, memory=400), status("error", None)) == []


async def test_store_that_cannot_be_written_disturbs_no_runtime() -> None:
    """Measures are left out then."""
    assert await measured(status("loaded", 7, memory=100, seconds=1.0), status("error", None), broken=True) == []


def test_options_are_told_apart_by_what_a_worker_is_given() -> None:
    """Another path or another option of loading is another key; what only the daemon acts on is not."""

    def key(**changes: object) -> str:
        return options_sha256(msgspec.structs.replace(CONFIG, **changes))

    assert key() == options_sha256(CONFIG)
    assert key(idle_timeout=5.0, tier="light") == key()
    assert len({key(), key(path="/models/b.gguf"), key(n_ctx=512), key(options={"a": 1, "b": 2})}) == 4
    assert key(options={"a": 1, "b": 2}) == key(options={"b": 2, "a": 1})
