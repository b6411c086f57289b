"""The real store on a file of a test's own: opened, filled, read, and what lies beside its file."""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.fake_control import job

from llmvisor.clock import SystemClock
from llmvisor.store import limits
from llmvisor.store.jobs import JobRows
from llmvisor.store.migrations import MIGRATIONS, Migration
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that would make a test slow."""
    monkeypatch.setattr(limits, "store_retry_seconds", 0.05)
    monkeypatch.setattr(limits, "store_lock_seconds_max", 0.1)
    monkeypatch.setattr(limits, "store_lock_degraded_seconds_max", 0.01)


@asynccontextmanager
async def opened(path: Path, migrations: tuple[Migration, ...] = MIGRATIONS) -> AsyncGenerator[Store]:
    store = Store(path, SystemClock(), migrations=migrations)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def filled(path: Path, count: int = 3) -> bytes:
    """A store with this many jobs, closed; its bytes."""
    async with opened(path) as store:
        rows = JobRows(store)
        for number in range(count):
            await rows.save(job(f"job_{number}", stage="w" * 500))
    return path.read_bytes()


async def job_ids(store: Store) -> list[str]:
    return [saved.job.id for saved in await JobRows(store).all()]


def kept(path: Path, why: str) -> list[Path]:
    return sorted(path.parent.glob(f"llmvisor.{why}-*.db"))


def insert(database: Database) -> None:
    database.conn.execute("INSERT INTO write_tests VALUES (zeroblob(100000))")


def count(database: Database) -> int:
    return int(database.conn.execute("SELECT count(*) FROM write_tests").fetchone()[0])
