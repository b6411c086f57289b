"""The store in a process of its own that is killed, or whose disk is full, and what is left on the disk then."""

# ruff: noqa: ASYNC240 - the files are small and near

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.polling import eventually_sync

from llmvisor.clock import SystemClock
from llmvisor.store.jobs import JobRows
from llmvisor.store.store import Store

KILLS = 12

WRITER = """
import asyncio, sys
from pathlib import Path
from llmvisor.clock import SystemClock
from llmvisor.control.api import Job, JobParams
from llmvisor.store.jobs import JobRows
from llmvisor.store.store import Store

async def main(path, run):
    store = Store(Path(path), SystemClock())
    await store.open()
    assert store.degraded is None, store.degraded
    rows = JobRows(store)
    for number in range(100_000):
        id = f"job_{run}_{number}"
        job = Job(id, "install", JobParams(), "running", 0.5, "x" * 300, 1, 2, "bytes", created_at="2026-01-01")
        await rows.save(job)
        print(id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

MIGRATING = """
import asyncio, sys, time
from pathlib import Path
from llmvisor.clock import SystemClock
from llmvisor.store.migrations import MIGRATIONS
from llmvisor.store.store import Store

def halts(database):
    database.table("jobs").add_column("colour", str)
    database.conn.execute("UPDATE jobs SET colour = 'green'")
    print("in the middle", flush=True)
    time.sleep(60)

asyncio.run(Store(Path(sys.argv[1]), SystemClock(), migrations=(*MIGRATIONS, halts)).open())
"""

FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from llmvisor.store import limits
from llmvisor.clock import SystemClock
from llmvisor.errors import StoreUnavailable
from llmvisor.store.store import Store

limits.store_retry_seconds = 0.05

def fill(database):
    database.conn.execute("INSERT INTO cache_entries (key, body) VALUES (hex(randomblob(8)), randomblob(50000))")

def count(database):
    return database.conn.execute("SELECT count(*) FROM cache_entries").fetchone()[0]

async def main(path):
    store = Store(Path(path), SystemClock())
    await store.open()
    assert store.degraded is None, store.degraded
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    written = 0
    try:
        while written < 1000:
            await store.run(fill)
            written += 1
    except StoreUnavailable as error:
        print("refused:", error)
    print("degraded:", store.degraded)
    assert await store.read(count) == written, "what was written is there, and nothing else"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    while store.degraded is not None:
        await asyncio.sleep(0.01)
    await store.run(fill)
    assert await store.read(count) == written + 1
    print("recovered after", written)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def script(text: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """A process that runs this, and is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


async def saved(path: Path) -> set[str]:
    store = Store(path, SystemClock())
    await store.open()
    try:
        assert store.degraded is None
        return {row.job.id for row in await JobRows(store).all()}
    finally:
        await store.close()


async def test_killed_writer_loses_no_committed_row(tmp_path: Path) -> None:
    """1. A process writes rows and tells each that is written. 2. It is killed at any moment. 3. Again and again.

    Result: every row that was told is there at the end, and the file was never taken for damaged.
    """
    path, source = tmp_path / "llmvisor.db", random.Random(7)
    told: set[str] = set()
    for run in range(KILLS):
        with script(WRITER, str(path), str(run)) as process:
            assert process.stdout is not None
            for _ in range(source.randrange(1, 60)):
                told.add(process.stdout.readline().strip())
            process.kill()
            told |= {line.strip() for line in process.stdout if line.endswith("\n")}
    assert await saved(path) >= told
    assert len(told) > KILLS
    assert [file.name for file in tmp_path.glob("*damaged*")] == []


async def test_store_that_is_killed_while_it_begins_begins_again(tmp_path: Path) -> None:
    """1. A process is killed at any moment of making a new file, from none of it to all of it. 2. Another one opens it.

    Result: it opens as a whole file, and nothing was set aside.
    """
    seen: set[int] = set()
    for run in range(KILLS):
        path = tmp_path / str(run) / "llmvisor.db"
        with script(WRITER, str(path), str(run)) as process:
            size = run * 8192
            eventually_sync(lambda path=path, size=size: grown(path) >= size or process.poll() is not None, 20)
            process.kill()
        seen.add(grown(path))
        await saved(path)
        assert [file.name for file in path.parent.glob("*damaged*")] == []
    assert len(seen) > 1


async def test_migration_that_is_killed_in_its_middle_has_not_happened(tmp_path: Path) -> None:
    """1. A process is killed in the middle of a step to a newer version. 2. The older version opens the file.

    Result: it is as it was, and the copy from before lies beside it.
    """
    path = tmp_path / "llmvisor.db"
    with script(WRITER, str(path), "0") as process:
        assert process.stdout is not None
        told = {process.stdout.readline().strip() for _ in range(20)}
    with script(MIGRATING, str(path)) as process:
        assert process.stdout is not None
        assert any(line == "in the middle\n" for line in process.stdout)
    assert await saved(path) >= told
    assert len(list(tmp_path.glob("llmvisor.before-*.v1.db"))) == 1
    assert list(tmp_path.glob("*damaged*")) == []


def grown(path: Path) -> int:
    """Bytes of the file and its log."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())


def test_disk_that_takes_no_more_is_told_and_overcome(tmp_path: Path) -> None:
    """1. The system refuses to let the file grow. 2. A write fails with an error, reads go on. 3. It may grow again.

    Result: nothing of the failed write is there, and the store goes on by itself.
    """
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "llmvisor.db")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "refused: the disk of" in answer.stdout
    assert "degraded: the disk of" in answer.stdout
    assert "recovered after" in answer.stdout


def test_store_loads_no_library_for_numbers(tmp_path: Path) -> None:
    """sqlite-utils comes without numpy and pandas, installed as they are, and both can be imported afterwards."""
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom llmvisor.clock import SystemClock\n"
        "from llmvisor.store.store import Store\n"
        "async def main():\n"
        f"    store = Store(Path({str(tmp_path / 'llmvisor.db')!r}), SystemClock())\n"
        "    await store.open()\n    assert store.degraded is None\n    await store.close()\n"
        "asyncio.run(main())\n"
        "print('sqlite_utils' in sys.modules, 'numpy' in sys.modules, 'pandas' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["True", "False", "False"]
