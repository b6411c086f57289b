"""The orphan journal: what an earlier daemon left running is ended, and nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.workers import executable, nonce, start

from llmvisor import limits
from llmvisor.errors import StartError
from llmvisor.supervision.workers.orphans import JournalEntry, OrphanJournal, process_start_time, sweep
from llmvisor.supervision.workers.spawn import NONCE_VARIABLE

NONCE = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


class Processes:
    """Processes of a test, in sessions of their own; all are ended with it."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def worker(self, *arguments: str, child: bool = False, variable: str | None = None) -> int:
        """A process with these arguments, whose shell has a child where `child`."""
        script = "sleep 1000 & wait" if child else "exec sleep 1000"
        if not child:
            script = "while :; do sleep 1000; done"
        environment = {"PATH": os.environ["PATH"]} | ({NONCE_VARIABLE: variable} if variable else {})
        process = subprocess.Popen(["sh", "-c", script, "worker", *arguments], start_new_session=True, env=environment)
        self.started.append(process)
        eventually_sync(lambda: psutil.Process(process.pid).children())
        return process.pid

    def end(self) -> None:
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def processes() -> Generator[Processes]:
    processes = Processes()
    with no_leaks():
        yield processes
        processes.end()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


def record(run_dir: Path, *, pid: int, nonce: str = NONCE, start_time: float | None = None) -> JournalEntry:
    """Write an entry as the daemon would have."""
    found = process_start_time(pid)
    entry = JournalEntry(pid=pid, start_time=start_time or found or 1.0, nonce=nonce, model="tiny")
    (run_dir / f"worker-{nonce}.json").write_bytes(msgspec.json.encode(entry))
    return entry


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --------------------------------------------------------------------------------------------------------- the journal


@pytest.mark.both_loops
async def test_journal_holds_a_worker_from_its_start_to_its_end(tmp_path: Path, leak_check: None) -> None:
    """1. A worker starts: it is in the journal, as it can be found again. 2. It ends: it is not any more."""
    recorded = await start(tmp_path, "serve")
    (path,) = (tmp_path / "run").iterdir()
    entry = msgspec.json.decode(path.read_bytes(), type=JournalEntry)
    assert (entry.pid, entry.model) == (recorded.pid, "tiny")
    assert entry.start_time == process_start_time(recorded.pid)
    await recorded.hello()
    assert entry.nonce in psutil.Process(recorded.pid).cmdline()
    assert psutil.Process(recorded.pid).environ()[NONCE_VARIABLE] == entry.nonce
    assert path.stat().st_mode & 0o777 == 0o600
    recorded.stop("kill")
    await recorded.exit()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.both_loops
async def test_worker_starts_where_the_journal_cannot_be_written(
    tmp_path: Path, leak_check: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the entry, not the model."""

    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OrphanJournal, "record", full)
    recorded = await start(tmp_path, "serve", python=executable(tmp_path / "quick", "exit 4"))
    assert (await recorded.exit()).code == 4


@pytest.mark.parametrize("kind", ["link", "file", "group-writable", "foreign"])
def test_run_folder_that_others_could_write_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the journal can have processes killed: such a folder is refused, with what to do."""
    folder = tmp_path / "run"
    if kind == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir(mode=0o700)
    if kind == "group-writable":
        folder.chmod(0o770)
    if kind == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (OrphanJournal, sweep):
        with pytest.raises(StartError, match=str(folder)):
            use(folder)


def test_entry_of_a_process_that_has_gone_is_not_written(run_dir: Path) -> None:
    """A worker that ended before it could be written down needs no entry."""
    process = subprocess.Popen(["true"])
    process.wait()
    OrphanJournal(run_dir).record(pid=process.pid, nonce=NONCE, model="m")
    assert list(run_dir.iterdir()) == []


def test_failed_write_leaves_no_part_of_an_entry(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is there whole, or not at all."""

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        OrphanJournal(run_dir).record(pid=os.getpid(), nonce=NONCE, model="m")
    assert list(run_dir.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ the sweep


def test_boot_sweep_kills_a_true_orphan_and_its_group(run_dir: Path, processes: Processes) -> None:
    """A worker that is still what the journal says is killed with all its group, and its entry removed."""
    pid = processes.worker("--nonce", NONCE, child=True)
    (child,) = psutil.Process(pid).children()
    entry = record(run_dir, pid=pid)
    found = sweep(run_dir)
    assert (found.killed, found.stale, found.unreadable) == ([entry], [], [])
    assert not lives(pid)
    eventually_sync(lambda: not lives(child.pid))
    assert list(run_dir.iterdir()) == []


def test_boot_sweep_spares_a_reused_pid(run_dir: Path, processes: Processes) -> None:
    """A process that has the pid and even the start time, but not the nonce, is a stranger."""
    pid = processes.worker("--nonce", OTHER)
    entry = record(run_dir, pid=pid)
    found = sweep(run_dir)
    assert (found.killed, found.stale) == ([], [entry])
    assert lives(pid)
    assert list(run_dir.iterdir()) == []


def test_boot_sweep_spares_another_start_time(run_dir: Path, processes: Processes) -> None:
    """A process with the right pid and nonce that started at another moment is not the one that was written down."""
    pid = processes.worker("--nonce", NONCE)
    entry = record(run_dir, pid=pid, start_time=12.5)
    assert sweep(run_dir).stale == [entry]
    assert lives(pid)


def test_boot_sweep_spares_a_process_that_leads_no_group(run_dir: Path, processes: Processes) -> None:
    """A worker leads a group of its own; to signal another's group would reach strangers."""
    processes.worker("--nonce", OTHER, child=True)
    script = f"import os, time; pid = os.fork(); pid and print(pid, flush=True); time.sleep(1000) # {NONCE}"
    with subprocess.Popen(
        [sys.executable, "-c", script, NONCE], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as leader:
        try:
            assert leader.stdout is not None
            member = int(leader.stdout.readline())
            record(run_dir, pid=member)
            assert sweep(run_dir).killed == []
            assert lives(member)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)


def test_boot_sweep_kills_what_outlived_the_worker(run_dir: Path, processes: Processes) -> None:
    """1. A worker started a process elsewhere and died. Result: that process is known by its nonce, and killed."""
    pid = processes.worker(variable=NONCE)
    stranger = processes.worker(variable=OTHER)
    gone = subprocess.Popen(["true"])
    gone.wait()
    entry = record(run_dir, pid=gone.pid)
    assert sweep(run_dir).killed == [entry]
    assert not lives(pid)
    assert lives(stranger)


def test_boot_sweep_drops_an_entry_whose_process_has_gone(run_dir: Path) -> None:
    """Nothing runs: the entry goes, and nothing else happens."""
    process = subprocess.Popen(["true"])
    process.wait()
    entry = record(run_dir, pid=process.pid)
    assert sweep(run_dir).stale == [entry]
    assert list(run_dir.iterdir()) == []


def good(pid: int) -> dict[str, object]:
    return {"pid": pid, "start_time": 1.0, "nonce": NONCE, "model": "m"}


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "noise": os.urandom(100),
    "cut": json.dumps(good(2)).encode()[:-5],
    "no object": b"[1]",
    "unknown field": json.dumps(good(2) | {"x": 1}).encode(),
    "bad utf-8": b'{"pid": 2, "start_time": 1, "nonce": "\xff", "model": ""}',
    "nested": b"[" * 100_000,
    "too long": json.dumps(good(2) | {"model": "m" * limits.journal_entry_bytes_max}).encode(),
    "pid of nobody": json.dumps(good(0)).encode(),
    "pid of everybody": json.dumps(good(-1)).encode(),
    "pid of init": json.dumps(good(1)).encode(),
    "pid of ourselves": json.dumps(good(os.getpid())).encode(),
    "pid past all": json.dumps(good(2**70)).encode(),
    "empty nonce": json.dumps(good(2) | {"nonce": ""}).encode(),
    "short nonce": json.dumps(good(2) | {"nonce": "ab"}).encode(),
    "path as nonce": json.dumps(good(2) | {"nonce": "../../etc/passwd"}).encode(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_boot_sweep_removes_garbage_and_kills_nobody(run_dir: Path, kind: str) -> None:
    """A file that is no entry is said, removed and not believed."""
    (run_dir / "worker-x.json").write_bytes(GARBAGE[kind])
    found = sweep(run_dir)
    assert (found.killed, found.stale, found.unreadable) == ([], [], ["worker-x.json"])
    assert list(run_dir.iterdir()) == []


def test_boot_sweep_follows_no_link_and_waits_for_no_pipe(run_dir: Path, tmp_path: Path) -> None:
    """Things that are no plain files are not entries, whatever they are called."""
    (tmp_path / "elsewhere").write_text("kept")
    (run_dir / "worker-link.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(run_dir / "worker-fifo.json")
    (run_dir / "worker-folder.json").mkdir()
    assert sweep(run_dir).unreadable == ["worker-fifo.json", "worker-folder.json", "worker-link.json"]
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_boot_sweep_leaves_the_files_of_others(run_dir: Path) -> None:
    """The folder is not the journal's alone; half-written entries are."""
    for name in ("daemon.lock", "notes.json", "worker.txt"):
        (run_dir / name).write_text("x")
    (run_dir / f".worker-{NONCE}").write_text("{")
    sweep(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["daemon.lock", "notes.json", "worker.txt"]


def test_boot_sweep_makes_the_folder_on_the_first_start(tmp_path: Path) -> None:
    """Nothing was ever started here."""
    found = sweep(tmp_path / "run")
    assert (found.killed, found.stale, found.unreadable) == ([], [], [])
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_boot_sweep_kills_a_stopped_orphan(run_dir: Path, processes: Processes) -> None:
    """A frozen worker that a killed daemon left is ended as well."""
    pid = processes.worker("--nonce", NONCE)
    os.kill(pid, signal.SIGSTOP)
    record(run_dir, pid=pid)
    assert len(sweep(run_dir).killed) == 1
    assert not lives(pid)


def test_nonces_of_these_tests_are_different() -> None:
    """The journal names its files by them."""
    assert nonce() != nonce()
