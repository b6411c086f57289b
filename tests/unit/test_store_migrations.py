"""The store's file of another version: an older one is brought to this one whole or not at all, after a copy, and a
newer one is left alone."""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.polling import eventually
from tests.support.stores import count, filled, insert, job_ids, kept, opened, shorten_waits

from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits, opening
from llmvisor.store.migrations import MIGRATIONS, Migration

if TYPE_CHECKING:
    from sqlite_utils import Database

pytestmark = pytest.mark.usefixtures("leak_check")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llmvisor.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def add_colour(database: Database) -> None:
    database.table("jobs").add_column("colour", str)
    database.conn.execute("UPDATE jobs SET colour = 'green'")


def add_then_fail(database: Database) -> None:
    add_colour(database)
    database.conn.execute("INSERT INTO no_such_table VALUES (1)")


async def test_migration_keeps_rows_and_a_copy(path: Path) -> None:
    """1. A file of an older version with rows. 2. Opened by a newer one.

    Result: the rows are there and changed, the file has the new version, a copy of it as it was lies beside it.
    """
    await filled(path)
    async with opened(path, (*MIGRATIONS, add_colour)) as store:
        assert await job_ids(store) == ["job_0", "job_1", "job_2"]
        colours = await store.read(
            lambda database: database.conn.execute("SELECT DISTINCT colour FROM jobs").fetchall()
        )
        version = await store.read(lambda database: database.conn.execute("PRAGMA user_version").fetchone()[0])
    assert (colours, version) == ([("green",)], 2)
    (copy,) = kept(path, "before")
    with closing(sqlite3.connect(copy)) as old:
        assert old.execute("SELECT count(*) FROM jobs").fetchone() == (3,)
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert "colour" not in {row[1] for row in old.execute("PRAGMA table_info(jobs)")}


async def test_migration_that_fails_changes_nothing(path: Path) -> None:
    """A step that cannot be carried out leaves the file as it was; it is told, and not taken for damage."""
    await filled(path)
    async with opened(path, (*MIGRATIONS, add_then_fail)) as store:
        assert "could not be brought to version 2" in (store.degraded or "")
        with pytest.raises(StoreUnavailable, match="no_such_table"):
            await store.run(insert)
    async with opened(path) as store:
        assert await job_ids(store) == ["job_0", "job_1", "job_2"]
    assert kept(path, "damaged") == []


async def test_migration_waits_for_a_disk_that_takes_its_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. There is no space for the copy. 2. Nothing is changed, and it is told. 3. There is space.

    Result: the file is brought to its version by itself, and no half copy is left.
    """
    older = await filled(path)
    sync = opening.sync

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(opening, "sync", full)
    async with opened(path, (*MIGRATIONS, add_colour)) as store:
        assert "No space left on device" in (store.degraded or "")
        assert path.read_bytes() == older
        monkeypatch.setattr(opening, "sync", sync)
        await eventually(lambda: store.degraded is None)
        assert await job_ids(store) == ["job_0", "job_1", "job_2"]
    assert len(kept(path, "before")) == 1
    assert list(path.parent.glob("*.partial")) == []


async def test_copies_are_not_kept_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the copies from before newer versions only the last ones stay."""
    monkeypatch.setattr(limits, "store_copies_kept_max", 2)
    steps: tuple[Migration, ...] = MIGRATIONS
    for _ in range(4):
        async with opened(path, steps):
            steps = (*steps, lambda _: None)
    assert [copy.name.rsplit(".", 2)[1] for copy in kept(path, "before")] == ["v2", "v3"]


async def test_newer_version_is_refused_and_left_alone(path: Path) -> None:
    """1. A file that a newer llmvisor made. 2. Opened, read and written. 3. The older file put back.

    Result: each call says what to do next, not a byte has changed, and with the older file it goes on by itself.
    """
    older = await filled(path)
    async with opened(path, (*MIGRATIONS, add_colour)):
        pass
    newer = path.read_bytes()
    async with opened(path) as store:
        assert "made by a newer llmvisor" in (store.degraded or "")
        with pytest.raises(StoreUnavailable) as refused:
            await store.read(count)
        assert "install the newer llmvisor again" in str(refused.value)
        assert kept(path, "before")[0].name in str(refused.value)
        assert path.read_bytes() == newer
        path.write_bytes(older)
        await eventually(lambda: store.degraded is None)
        assert await job_ids(store) == ["job_0", "job_1", "job_2"]
    assert kept(path, "damaged") == []
