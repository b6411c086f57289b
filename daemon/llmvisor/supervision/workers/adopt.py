"""Children that an earlier run of this very process started: their ends are seen, although nobody here forked them.

A daemon that is upgraded executes itself anew in the same process, so its workers stay its children: they can be
waited for, and they still die with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

import psutil

from llmvisor import limits
from llmvisor.supervision.workers.reaper import ProcessGroup

UNKNOWN_CODE = 255
"""Of a child that somebody else has reaped, as the standard library gives it."""


class AdoptedProcess:
    """A child by its pid. Raises `ProcessLookupError` where it is no child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd: int | None = None
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        if not is_child(pid):
            raise ProcessLookupError(f"process {pid} is no child of this one")
        if sys.platform == "linux":
            with suppress(OSError):  # an old kernel, or a sandbox
                self._pidfd = os.pidfd_open(pid)
                asyncio.get_running_loop().add_reader(self._pidfd, self._look)
        self._look()

    async def wait(self) -> int:
        """Its exit code, or the negative number of the signal that killed it."""
        return await asyncio.shield(self._code)

    def _look(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            self._ended(UNKNOWN_CODE)
            return
        if pid:
            self._ended(os.waitstatus_to_exitcode(status))
        elif self._pidfd is None:
            self._timer = asyncio.get_running_loop().call_later(limits.process_poll_seconds, self._look)

    def _ended(self, code: int) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if not self._code.done():
            self._code.set_result(code)


def is_child(pid: int) -> bool:
    """Whether a process is a child of this one; one that has ended and was not waited for is."""
    try:
        return psutil.Process(pid).ppid() == os.getpid()
    except psutil.Error:
        return False


def children_but(kept: Iterable[int]) -> list[int]:
    """The pids of this process's children without these."""
    spared = set(kept)
    return [child.pid for child in psutil.Process().children() if child.pid not in spared]


def end_children(pids: Iterable[int]) -> None:
    """Kill children of this process, with the groups that they lead, and reap them.

    For the moment after a daemon has executed itself: whoever is not adopted is waited for by nobody else.
    """
    for pid in pids:
        group = ProcessGroup(pid)
        group.signal(signal.SIGKILL)
        if _leads(pid):
            group.signal_group(signal.SIGKILL)
        if group.wait(limits.kill_wait_seconds_max):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        group.close()


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except OSError:
        return False
