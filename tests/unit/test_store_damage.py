"""The store's file when it is damaged, another program's, or taken away: it is kept under a dated name, a new one is
begun, and the store goes on."""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.fake_control import job
from tests.support.polling import eventually
from tests.support.stores import count, filled, insert, job_ids, kept, opened, shorten_waits

from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits
from llmvisor.store.jobs import JobRows

pytestmark = pytest.mark.usefixtures("leak_check")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llmvisor.db"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def torn(data: bytes) -> bytes:
    return data[:1000]


def zeroed(data: bytes) -> bytes:
    return data[:8192] + bytes(len(data) - 8192)


def garbage(data: bytes) -> bytes:
    return random.Random(1).randbytes(len(data))


def headless(data: bytes) -> bytes:
    return b"\0" * 100 + data[100:]


def text(_data: bytes) -> bytes:
    return b"this is no database\n" * 100


@pytest.mark.parametrize("damage", [cut, torn, zeroed, garbage, headless, text])
async def test_damaged_file_is_set_aside(path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A file that is no longer what it was is kept byte for byte under a dated name, and a new one begun."""
    data = damage(await filled(path, 200))
    path.write_bytes(data)
    async with opened(path) as store:
        assert store.degraded is None
        assert await job_ids(store) == []
        await JobRows(store).save(job("job_new"))
        assert await job_ids(store) == ["job_new"]
    (aside,) = kept(path, "damaged")
    assert aside.read_bytes() == data


@pytest.mark.parametrize("version", [-1, 5_000])
async def test_version_that_cannot_be_is_damage(path: Path, version: int) -> None:
    """A version that nobody will ever make is no reason to wait for a newer llmvisor."""
    await filled(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    async with opened(path) as store:
        assert store.degraded is None
    assert len(kept(path, "damaged")) == 1


async def test_file_of_another_program_is_set_aside(path: Path) -> None:
    """An SQLite file with other tables is nobody's to overwrite."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    async with opened(path) as store:
        await store.run(insert)
    with closing(sqlite3.connect(kept(path, "damaged")[0])) as other:
        assert other.execute("SELECT count(*) FROM recipes").fetchone() == (0,)


async def test_file_without_a_table_is_set_aside(path: Path) -> None:
    """A file of this version that lacks what this version needs cannot be used, however sound it is."""
    await filled(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE usage")
    async with opened(path) as store:
        assert "usage" in await store.read(lambda database: database.table_names())
    assert len(kept(path, "damaged")) == 1


async def test_flipped_bytes_never_stop_the_store(path: Path) -> None:
    """Wherever bytes are flipped, it opens with the old rows or with none, gives rows without an error, and writes."""
    sound = await filled(path, 60)
    source = random.Random(20)
    outcomes: set[bool] = set()
    for _ in range(80):
        data = bytearray(sound)
        for _ in range(source.choice((1, 1, 3, 20))):
            # The header and the schema are hit as often as all the rest.
            place = source.randrange(source.choice((100, 4096, len(data))))
            data[place] ^= source.randrange(1, 256)
        path.write_bytes(data)
        async with opened(path) as store:
            if store.degraded is not None:
                assert "newer" in store.degraded  # the version itself was hit
                continue
            await job_ids(store)
            await JobRows(store).save(job("job_new"))
            assert "job_new" in await job_ids(store)
        outcomes.add(bool(kept(path, "damaged")))
        for file in path.parent.iterdir():
            file.unlink()
    assert outcomes == {True, False}


async def test_damaged_files_are_not_kept_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that damages the file again and again does not fill up with its remains."""
    monkeypatch.setattr(limits, "store_damaged_files_kept_max", 2)
    path.parent.mkdir(parents=True)
    for _ in range(4):
        path.write_bytes(b"garbage" * 100)
        async with opened(path):
            pass
    assert len(kept(path, "damaged")) == 2


async def test_file_that_is_damaged_while_it_is_open_is_set_aside(path: Path) -> None:
    """1. Garbage is written over the file of an open store. 2. It is used on.

    Result: once it is read again it says that it is damaged, and then goes on with a whole file.
    """
    await filled(path, 400)
    async with opened(path) as store:
        assert len(await job_ids(store)) == 400
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(random.Random(1).randbytes(size))
        await store.read(lambda database: database.conn.execute("PRAGMA shrink_memory").fetchall())
        with pytest.raises(StoreUnavailable, match="damaged"):
            await job_ids(store)
        await eventually(lambda: store.degraded is None)
        await JobRows(store).save(job("job_last"))
        assert "job_last" in await job_ids(store)
    assert len(kept(path, "damaged")) == 1
    async with opened(path) as store:
        assert "job_last" in await job_ids(store)


async def test_row_that_makes_no_sense_is_left_out(path: Path) -> None:
    """Damage within a row costs this row alone."""
    await filled(path)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE jobs SET state = 'confused' WHERE id = 'job_1'")
        other.execute("UPDATE jobs SET stage = CAST(x'ff41' AS TEXT) WHERE id = 'job_2'")
    async with opened(path) as store:
        assert await job_ids(store) == ["job_0", "job_2"]


async def test_file_that_is_taken_away_is_begun_anew(path: Path) -> None:
    """Nothing goes on being written to a file that nobody can ever read again."""
    async with opened(path) as store:
        await store.run(insert)
        path.unlink()
        await store.run(insert)
        assert await store.read(count) == 1
        assert store.degraded is None
    async with opened(path) as store:
        assert await store.read(count) == 1
