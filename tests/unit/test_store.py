"""The store's file: what becomes of it when it is new, old, newer, damaged, locked, full or gone.

Every test runs the real store, its thread and SQLite, on a file of its own.
"""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.fake_control import job
from tests.support.polling import eventually

from llmvisor.clock import SystemClock
from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits, opening
from llmvisor.store.jobs import JobRows
from llmvisor.store.migrations import MIGRATIONS, REQUIRED, Migration
from llmvisor.store.store import Store

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
    """Waits that would make a test slow."""
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


def set_pages_max(database: Database, most: int) -> None:
    database.conn.execute(f"PRAGMA max_page_count = {most}").fetchall()


# ------------------------------------------------------------------------------------------------------------ its life


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


# --------------------------------------------------------------------------------------------------- older and newer


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


# ------------------------------------------------------------------------------------------------------------- damage


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


# ------------------------------------------------------------------------------------------------- locked, full, gone


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
