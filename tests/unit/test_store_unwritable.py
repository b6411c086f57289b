"""The store's file when it cannot be written, because it is locked, its disk is full or its folder is none: the store
says so, and is whole again by itself once it can be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.fake_control import job
from tests.support.polling import eventually
from tests.support.stores import count, filled, insert, job_ids, kept, opened, shorten_waits

from llmvisor.errors import StoreUnavailable
from llmvisor.store.jobs import JobRows

if TYPE_CHECKING:
    from sqlite_utils import Database

pytestmark = pytest.mark.usefixtures("leak_check")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llmvisor.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def set_pages_max(database: Database, most: int) -> None:
    database.conn.execute(f"PRAGMA max_page_count = {most}").fetchall()


async def test_locked_store_says_so_and_goes_on_by_itself(path: Path) -> None:
    """1. Somebody else holds the file's lock. 2. Writes fail with an error, reads go on. 3. The lock is let go.

    Result: the store is whole again without anything done to it.
    """
    await filled(path)
    async with opened(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked by another process"):
                await store.run(insert)
            assert "locked" in (store.degraded or "")
            assert await job_ids(store) == ["job_0", "job_1", "job_2"]
            other.execute("ROLLBACK")
        await eventually(lambda: store.degraded is None)
        await store.run(insert)


async def test_store_that_is_locked_at_the_start_is_opened_later(path: Path) -> None:
    """A lock from before the start costs the start nothing but the store, for as long as it lasts."""
    await filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        other.execute("BEGIN EXCLUSIVE")
        async with opened(path) as store:
            assert "locked" in (store.degraded or "")
            other.execute("ROLLBACK")
            other.close()
            await eventually(lambda: store.degraded is None)
            assert await job_ids(store) == ["job_0", "job_1", "job_2"]
    assert kept(path, "damaged") == []


async def test_second_daemon_does_not_touch_the_file(path: Path) -> None:
    """A folder that two daemons share has one that writes it; the other says what to do, and takes over."""
    async with opened(path) as first:
        await JobRows(first).save(job("job_0"))
        async with opened(path) as second:
            assert "another llmvisor uses the store" in (second.degraded or "")
            assert "storage.dir" in (second.degraded or "")
            with pytest.raises(StoreUnavailable):
                await second.read(count)
            await first.close()
            await eventually(lambda: second.degraded is None)
            assert await job_ids(second) == ["job_0"]


async def test_full_disk_stops_nothing_but_writes(path: Path) -> None:
    """1. The disk takes no more. 2. A write fails, and says it. 3. Reads go on. 4. There is space again.

    Result: nothing of the failed write is there, and the next one works without anything done to the store.
    """

    async with opened(path) as store:
        await JobRows(store).save(job("job_0"))
        await store.read(lambda database: set_pages_max(database, 1))  # as large as it is now
        with pytest.raises(StoreUnavailable) as refused:
            await store.run(insert)
        assert "full" in refused.value.message
        assert "free some space" in (refused.value.hint or "")
        assert "full" in (store.degraded or "")
        assert await job_ids(store) == ["job_0"]
        assert await store.read(count) == 0
        await store.read(lambda database: set_pages_max(database, 100_000))
        await eventually(lambda: store.degraded is None)
        await store.run(insert)
        assert await store.read(count) == 1


async def test_write_that_fits_does_not_make_the_disk_less_full(path: Path) -> None:
    """A small write that goes well on a full disk does not take back that it is full."""
    async with opened(path) as store:
        await JobRows(store).save(job("job_0"))
        await store.read(lambda database: set_pages_max(database, 1))
        with pytest.raises(StoreUnavailable):
            await store.run(insert)
        for number in range(20):
            await JobRows(store).save(job("job_0", stage=str(number)))
            assert "full" in (store.degraded or "")
        await store.read(lambda database: set_pages_max(database, 100_000))
        await eventually(lambda: store.degraded is None)


async def test_file_that_could_only_be_read_is_opened_again(path: Path) -> None:
    """SQLite goes on reading alone where a file could not be written when it was opened, whatever happens to it later.

    `query_only` stands in for that: it holds for as long as the file stays open.
    """
    async with opened(path) as store:
        await store.read(lambda database: database.conn.execute("PRAGMA query_only = ON").fetchall())
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await store.run(insert)
        await eventually(lambda: store.degraded is None)
        await store.run(insert)
        assert await store.read(count) == 1


async def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A storage folder that is a file leaves the daemon without a store, until there is a folder."""
    folder = tmp_path / "data"
    folder.write_text("not a folder")
    async with opened(folder / "llmvisor.db") as store:
        assert "cannot be opened" in (store.degraded or "")
        folder.unlink()
        await eventually(lambda: store.degraded is None)
        await store.run(insert)
