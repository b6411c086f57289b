"""How much memory the machine has, and how much of it new processes could have at the moment.

For tests, `LLMVISOR_FAULT_MEMORY_FILE` names a file that says otherwise, read anew at each look: lines such as
`available 500MiB` and `total 2GiB`. What it does not say is as it is, and without the file everything is.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec
import psutil

from llmvisor.config.tree import parse_memory

FAULT_FILE_VARIABLE = "LLMVISOR_FAULT_MEMORY_FILE"
_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED_MIN = 2**60
"""The first version of cgroups says "no limit" with a number of this size."""


class ProcessMemory(msgspec.Struct, frozen=True):
    """Of one process, in bytes."""

    rss_bytes: int
    own_bytes: int
    """Of that, what is no page of a file. Pages of files count as available on the machine, also while a model that is
    mapped into memory computes with them."""


def process_memory(pid: int) -> ProcessMemory | None:
    """None for a process that has gone."""
    try:
        if sys.platform == "linux":
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
            page = resource.getpagesize()
            return ProcessMemory(int(resident) * page, max(0, int(resident) - int(shared)) * page)
        rss = psutil.Process(pid).memory_info().rss
    except (OSError, ValueError, psutil.Error):
        return None
    return ProcessMemory(rss, rss)


def oom_kills() -> int | None:
    """Processes that the kernel has ended for want of memory, in any cgroup, since it started. It counts one before it
    kills it. None where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as counters:
            return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), None)
    except OSError:
        return None


class MachineMemory:
    """The machine's memory, or that of the daemon's cgroup where that is less. Bytes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        fault_file = environ.get(FAULT_FILE_VARIABLE)
        self._fault_file = Path(fault_file) if fault_file else None
        self._groups = list(_groups())

    def total(self) -> int:
        if (faked := self._faked("total")) is not None:
            return faked
        limits = [limit for group in self._groups if (limit := group.limit()) is not None]
        return min([psutil.virtual_memory().total, *limits])

    def available(self) -> int:
        """Without swapping; caches that can be dropped count as free."""
        if (faked := self._faked("available")) is not None:
            return faked
        left = [left for group in self._groups if (left := group.left()) is not None]
        return max(0, min([psutil.virtual_memory().available, *left]))

    def _faked(self, what: str) -> int | None:
        if self._fault_file is None:
            return None
        with suppress(OSError, UnicodeDecodeError):
            for line in self._fault_file.read_text(encoding="utf-8").splitlines():
                name, _, value = line.partition(" ")
                if name == what and (parsed := parse_memory(value)) is not None and parsed[0] is None:
                    return parsed[1]
        return None


class _Group:
    """A cgroup that the daemon is in."""

    def __init__(self, folder: Path, *, version: int) -> None:
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        self._limit, self._usage = (folder / name for name in names)
        self._statistics = folder / "memory.stat"
        self._prefix = "" if version == 2 else "total_"

    def limit(self) -> int | None:
        limit = _number(self._limit)
        return limit if limit is not None and limit < _UNLIMITED_MIN else None

    def left(self) -> int | None:
        """What its limit leaves; pages of files count as free, for the kernel drops them first."""
        limit, usage = self.limit(), _number(self._usage)
        if limit is None or usage is None:
            return None
        return limit - usage + self._file_bytes()

    def _file_bytes(self) -> int:
        wanted = {f"{self._prefix}inactive_file", f"{self._prefix}active_file"}
        total = 0
        with suppress(OSError, ValueError):
            for line in self._statistics.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                total += int(value) if name in wanted else 0
        return total


def _groups() -> Iterator[_Group]:
    """The daemon's own cgroup and those above it, as far as they can be seen from here."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, version = (_ROOT / "memory", 1) if controllers else (_ROOT, 2)
        # In a container the path may be the host's, of which only the root is mounted here.
        for above in [PurePosixPath(path), *PurePosixPath(path).parents]:
            folder = root / str(above).lstrip("/")
            if folder.is_dir():
                yield _Group(folder, version=version)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
