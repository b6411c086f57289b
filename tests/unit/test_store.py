"""The store while all is well with its file: every table is there, work is done whole or not at all, and a disk that is
slow holds nobody.

Every test runs the real store, its thread and SQLite, on a file of its own.
"""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.polling import eventually
from tests.support.stores import count, filled, insert, job_ids, kept, opened, shorten_waits

from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits
from llmvisor.store.migrations import REQUIRED

if TYPE_CHECKING:
    from sqlite_utils import Database

pytestmark = pytest.mark.usefixtures("leak_check")

_MODEL = (
    "name upstream_model_name type state description publisher modified_at architecture quantization max_tokens size "
    "parameters streaming instructed coding tooling is_mlx is_gguf runtime_name service file_path sha256 source"
)
SPECIFIED = {
    "llm_models": _MODEL,
    "llm_registry_models": f"{_MODEL} db_key registry id model_id likes trending_score downloads created_at_ms tags "
    "url fetched_at",
    "llm_service_configs": "service_name api_format api_key_env_var urls short_timeout_sec long_timeout_sec "
    "verify_cert enable_discovery",
    "jobs": "id type params state progress stage bytes_done bytes_total error attempts created_at started_at ended_at "
    "idempotency_key",
    "conversations": "id",
    "conversation_items": "id",
    "responses": "id",
    "usage": "time request_id model service tier task_type key_name prompt_tokens cached_tokens completion_tokens "
    "first_token_ms total_ms status cost",
    "cache_entries": "key model_fingerprint body created_at expires_at hits",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llmvisor.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


async def test_store_begins_with_every_table(path: Path) -> None:
    """A new file has the tables of the specification, each with all of its columns, and is its owner's alone."""
    async with opened(path) as store:
        columns = await store.read(lambda database: {name: set(database.table(name).columns_dict) for name in REQUIRED})
    assert columns == dict(REQUIRED)
    missing = [f"{table}.{name}" for table, names in SPECIFIED.items() for name in set(names.split()) - columns[table]]
    assert missing == []
    assert path.stat().st_mode & 0o077 == 0


async def test_store_keeps_its_rows(path: Path) -> None:
    """What was written is there when it is opened again, without anything set aside."""
    await filled(path)
    async with opened(path) as store:
        assert await job_ids(store) == ["job_0", "job_1", "job_2"]
        assert store.degraded is None
    assert kept(path, "damaged") == []


async def test_store_is_careful_with_the_disk(path: Path) -> None:
    """Commits are synced, readers are not in the way of the writer, and foreign keys hold."""

    def settings(database: Database) -> list[object]:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        return [database.conn.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]

    async with opened(path) as store:
        assert await store.read(settings) == ["wal", 2, 1]
        with pytest.raises(sqlite3.IntegrityError):
            await store.run(
                lambda database: database.table("conversation_items").insert({"id": "1", "conversation_id": "none"})
            )
        assert store.degraded is None


async def test_failed_work_leaves_nothing(path: Path) -> None:
    """Work that raises in its middle has written nothing, and the next work is not disturbed."""

    def fails(database: Database) -> None:
        insert(database)
        raise KeyError("in the middle")

    async with opened(path) as store:
        with pytest.raises(KeyError):
            await store.run(fails)
        assert await store.read(count) == 0
        await store.run(insert)
        assert await store.read(count) == 1


async def test_work_of_somebody_who_left_is_done(path: Path) -> None:
    """Whoever asked may be cancelled; what was asked for is written all the same, and closing waits for it."""
    held = threading.Event()
    async with opened(path) as store:
        blocking = asyncio.create_task(store.run(lambda _: held.wait(10)))
        waiting = asyncio.create_task(store.run(insert))
        await asyncio.sleep(0)
        waiting.cancel()
        held.set()
        await blocking
    async with opened(path) as store:
        assert await store.read(count) == 1


async def test_closed_store_says_so(path: Path) -> None:
    """After its end everything is refused rather than waited for."""
    async with opened(path) as store:
        pass
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.run(insert)


async def test_disk_that_does_not_answer_holds_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call into a dead disk ends with an error, as does each one behind it; it is told, and taken back."""
    monkeypatch.setattr(limits, "store_answer_seconds_max", 0.05)
    disk = threading.Event()
    async with opened(path) as store:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await store.run(lambda _: disk.wait(10))
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await store.run(insert)
        assert "does not answer" in (store.degraded or "")
        disk.set()
        await eventually(lambda: store.degraded is None)


async def test_patient_work_is_written_once_however_long_it_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The disk does not answer in time. 2. Work that must not be done twice waits on, and this is told. 3. It does.

    Result: it was written once, and whoever asked never heard of an error.
    """
    monkeypatch.setattr(limits, "store_answer_seconds_max", 0.05)
    disk = threading.Event()
    async with opened(path) as store:
        blocking = asyncio.create_task(store.run(lambda _: disk.wait(10), patient=True))
        waiting = asyncio.create_task(store.run(insert, patient=True))
        await eventually(lambda: store.degraded)
        assert not waiting.done()
        disk.set()
        await asyncio.gather(blocking, waiting)
        assert store.degraded is None
        assert await store.read(count) == 1


async def test_queue_of_the_store_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot keep up refuses rather than pile up what it is asked."""
    monkeypatch.setattr(limits, "store_queue_calls_max", 2)
    disk = threading.Event()
    async with opened(path) as store:
        waiting = [asyncio.create_task(store.run(lambda _: disk.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="keep up"):
            await store.run(insert)
        disk.set()
        await asyncio.gather(*waiting)
        await store.run(insert)
