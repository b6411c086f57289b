"""Workers that outlived their daemon: a journal of the living, and the sweep at the next start.

A worker dies with its daemon by itself (the kernel's parent-death signal on Linux, the end of its pipe elsewhere); that
also covers the moment between fork and journal. The sweep is for what is left: a worker's own children, and workers
on systems where only the pipe tells. It kills a process only where pid, start time and the nonce that the worker was
started with all agree, so a pid that now belongs to a stranger is spared.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import psutil

from llmvisor import limits
from llmvisor.lock import secure_directory
from llmvisor.supervision.workers.confinement import sweep_scratch
from llmvisor.supervision.workers.reaper import ProcessGroup
from llmvisor.supervision.workers.spawn import NONCE_VARIABLE

_PREFIX = "worker-"
_SUFFIX = ".json"


class JournalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One worker that was started and has not been reaped."""

    pid: Annotated[int, msgspec.Meta(gt=1, lt=2**31)]
    """Of the process, and of the group that it leads."""
    start_time: float
    """As `process_start_time` gives it."""
    nonce: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
    model: str


class Sweep(msgspec.Struct, frozen=True):
    """What a sweep found."""

    killed: list[JournalEntry]
    stale: list[JournalEntry]
    """Their processes are gone, or their pids belong to others now."""
    unreadable: list[str]
    """Names of files that are no entries."""


def process_start_time(pid: int) -> float | None:
    """When a process started, None where there is none.

    On Linux in clock ticks since boot (proc(5), field 22), which a step of the wall clock does not move; elsewhere in
    seconds since the epoch.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the command's name, which may hold spaces and parentheses.
            return float(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        pass
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


class OrphanJournal:
    """One small file for each living worker, in a folder that only this user can write."""

    def __init__(self, run_dir: Path) -> None:
        """Makes the folder where there is none. Raises `StartError` where others could write in it."""
        self.run_dir = run_dir
        secure_directory(run_dir)

    def record(self, *, pid: int, nonce: str, model: str) -> None:
        """Write a worker down, whole or not at all. Raises OSError, and ValueError for a name that is no text."""
        start_time = process_start_time(pid)
        if start_time is None:
            return
        data = msgspec.json.encode(JournalEntry(pid=pid, start_time=start_time, nonce=nonce, model=model))
        temporary = self.run_dir / f".{_PREFIX}{nonce}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            temporary.replace(self._path(nonce))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, nonce: str) -> None:
        """Forget a worker that has been reaped. One that is not there is no error."""
        _remove(self._path(nonce))

    def _path(self, nonce: str) -> Path:
        return self.run_dir / f"{_PREFIX}{nonce}{_SUFFIX}"


def sweep(run_dir: Path, *, spared: Collection[str] = ()) -> Sweep:
    """Kill the workers that an earlier daemon left behind, and empty the journal.

    For the start, once the lock is held and before there are workers; blocks for `kill_wait_seconds_max` at most.
    `spared` are the nonces of workers that are going to be adopted: they stay in the journal. Raises `StartError`
    where others could have written the journal.
    """
    secure_directory(run_dir)
    found = Sweep([], [], [])
    families = _pids_by_nonce()
    kept = {f"{_PREFIX}{nonce}{_SUFFIX}" for nonce in spared}
    for path in sorted(run_dir.iterdir()):
        if path.name in kept:
            continue
        if path.name.startswith(f".{_PREFIX}"):
            _remove(path)
        elif path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX):
            entry = _read(path)
            if entry is None:
                found.unreadable.append(path.name)
            else:
                (found.killed if _kill(entry, families.get(entry.nonce, [])) else found.stale).append(entry)
            _remove(path)
    sweep_scratch(run_dir, living=set(spared))
    return found


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder stays; it is told at every start
        path.unlink()


def _read(path: Path) -> JournalEntry | None:
    """An entry, or None for a file that is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            entry = msgspec.json.decode(file.read(limits.journal_entry_bytes_max), type=JournalEntry)
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return entry if entry.pid != os.getpid() else None


def _kill(entry: JournalEntry, family: list[int]) -> bool:
    """Kill a worker's group, and what it started elsewhere; tells whether there was anything."""
    # The pidfd is open before the identity is looked at: what is killed is what was looked at.
    groups = [ProcessGroup(pid) for pid in sorted({entry.pid, *family})]
    killed = [group for group in groups if _kill_one(group, entry)]
    for group in killed:
        group.wait(limits.kill_wait_seconds_max)
    for group in groups:
        group.close()
    return bool(killed)


def _kill_one(group: ProcessGroup, entry: JournalEntry) -> bool:
    if group.pid == entry.pid and _is_worker(entry):
        group.signal_group(signal.SIGKILL)
        return True
    if _nonce_of(group.pid) == entry.nonce:
        group.signal(signal.SIGKILL)
        return True
    return False


def _is_worker(entry: JournalEntry) -> bool:
    try:
        arguments = psutil.Process(entry.pid).cmdline()
        leads = os.getpgid(entry.pid) == entry.pid
    except (psutil.Error, OSError):
        return False
    return leads and entry.nonce in arguments and process_start_time(entry.pid) == entry.start_time


def _nonce_of(pid: int) -> str | None:
    """The nonce in a process's environment; None where there is none, or it cannot be read."""
    try:
        return psutil.Process(pid).environ().get(NONCE_VARIABLE)
    except (psutil.Error, OSError):
        return None


def _pids_by_nonce() -> dict[str, list[int]]:
    """Every process that descends from a worker, by the worker's nonce."""
    families: dict[str, list[int]] = {}
    for pid in psutil.pids():
        nonce = _nonce_of(pid) if pid != os.getpid() else None
        if nonce is not None:
            families.setdefault(nonce, []).append(pid)
    return families
