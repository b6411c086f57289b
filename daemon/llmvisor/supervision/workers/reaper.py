"""Waits for a worker's process, and ends it and all that it started: the kill ladder."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

import msgspec
import psutil

from llmvisor import limits

Rung = Literal["close", "terminate", "abort", "kill"]
RUNGS: tuple[Rung, ...] = ("close", "terminate", "abort", "kill")

_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
"""Linux 6.9: the signal goes to the group that the process leads, even once the process itself has been reaped."""

EXIT_PERMANENT = 78
"""EX_CONFIG."""


class WorkerExit(msgspec.Struct, frozen=True):
    """How a worker ended. `code` and `signal` are both None where even SIGKILL did not end it in time."""

    code: int | None
    signal: int | None
    requested: bool
    """`Worker.stop` had asked for it."""
    violation: str | None
    """What the worker did that made the daemon kill it, as a predicate: `sent garbage: …`."""
    last_lines: list[str]
    reason: str | None = None
    """The reason given to `Worker.stop`."""
    memory_ran_out: bool | None = None
    """Whether the kernel ended processes for want of memory while this one lived; None where it does not say."""

    @property
    def possible_oom(self) -> bool:
        """Killed by a SIGKILL that the daemon did not send, which is how the kernel frees memory; not where it says
        that it freed none."""
        ours = self.requested or self.violation is not None
        return self.signal == signal.SIGKILL and not ours and self.memory_ran_out is not False

    @property
    def permanent(self) -> bool:
        """The worker says that starting it again is of no use."""
        return self.code == EXIT_PERMANENT

    def describe(self) -> str:
        """For people, without a subject: `killed by SIGSEGV`, `exited with code 70`."""
        if self.code is None and self.signal is None:
            return f"could not be killed within {limits.kill_wait_seconds_max:g} s, and may still run"
        if self.violation is not None:
            return self.violation
        ending = f"exited with code {self.code}" if self.signal is None else f"killed by {_name(self.signal)}"
        if self.requested:
            return f"stopped: {self.reason} ({ending})"
        if self.possible_oom:
            return f"{ending} (not by llmvisor; perhaps out of memory)"
        if self.signal == signal.SIGKILL:
            return f"{ending} (neither by llmvisor nor by the kernel for want of memory)"
        words = self.last_words if self.code or self.signal == signal.SIGABRT else ""
        return f"{ending}: {words}" if words else ending

    @property
    def last_words(self) -> str:
        """The last line before the end, or before the stacks that faulthandler prints over it."""
        spoken = itertools.takewhile(lambda line: not line.startswith(_DUMP), self.last_lines)
        return next((line for line in reversed(list(spoken)) if line.strip()), "")[: limits.last_words_chars_max]


_DUMP = "Fatal Python error"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ProcessGroup:
    """A process that leads a group, signalled so that a reused pid is never hit. Owns a pidfd where there is one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd: int | None = None
        if sys.platform == "linux":
            with suppress(OSError):  # an old kernel, or a sandbox
                self._pidfd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Signal the process itself. One that has gone is no error."""
        with suppress(ProcessLookupError, PermissionError):
            if self._pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def signal_group(self, number: int) -> None:
        """Signal all of the group, for as long as the process has not been reaped. One that has gone is no error."""
        if not self._signal_group_by_pidfd(number):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def kill_rest(self) -> None:
        """Kill what is left of the group after the process itself has been reaped."""
        if self._signal_group_by_pidfd(signal.SIGKILL):
            return
        # A group that lives on keeps its number from being given to a process. So a process of that number means that
        # the group has gone and the number belongs to a stranger.
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        except PermissionError:
            return

    def _signal_group_by_pidfd(self, number: int) -> bool:
        """False where this kernel cannot."""
        if self._pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except (ProcessLookupError, PermissionError):
            return True
        except OSError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Block until the process has ended, a zombie included, for no longer than this; tells whether it has.

        For a process that is no child of ours, before there is a loop.
        """
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        for _ in range(int(seconds / limits.process_poll_seconds) + 1):
            if _has_ended(self.pid):
                return True
            time.sleep(limits.process_poll_seconds)
        return False

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Waitable(Protocol):
    """The part of `asyncio.subprocess.Process` that the reaper needs."""

    async def wait(self) -> int: ...


class Reaper:
    """Waits for one process and climbs the kill ladder when asked."""

    def __init__(self, process: Waitable, group: ProcessGroup, *, close_commands: Callable[[], None]) -> None:
        self._group = group
        self._close_commands = close_commands
        self._rung = -1
        self._asked = asyncio.get_running_loop().create_future()
        self._exit = asyncio.ensure_future(process.wait())

    @property
    def exited(self) -> bool:
        return self._exit.done()

    @property
    def asked(self) -> bool:
        """Whether the ladder has begun."""
        return self._rung >= 0

    def stop(self, rung: Rung) -> None:
        """Begin the ladder at this rung, or go up to it; never goes down."""
        level = RUNGS.index(rung)
        if level > self._rung:
            self._rung = level
            if not self._asked.done():
                self._asked.set_result(None)

    async def reap(self) -> int | None:
        """Wait for the end. Gives the return code (negative: the signal), or None if SIGKILL did not end it in time.

        The rest of its group is killed as well. Cancelling this kills the group and waits for nothing.
        """
        try:
            await self._climb()
        finally:
            if self._exit.done():
                self._group.kill_rest()
            else:
                self._group.signal_group(signal.SIGKILL)
        return self._exit.result() if self._exit.done() else None

    async def _climb(self) -> None:
        """The kill ladder: close frame → SIGTERM → SIGABRT → SIGKILL, each with its time, until the process is gone."""
        grace_seconds: dict[Rung, float] = {
            "close": limits.close_grace_seconds,
            "terminate": limits.terminate_grace_seconds,
            "abort": limits.abort_grace_seconds,
            "kill": limits.kill_wait_seconds_max,
        }
        await self._wait(None)
        while not self._exit.done():
            rung = RUNGS[self._rung]
            self._act(rung)
            higher = await self._wait(grace_seconds[rung])
            if not higher and rung == "kill":
                return
            if not higher:
                self._rung += 1

    async def _wait(self, seconds: float | None) -> bool:
        """Wait for the end of the process, or for `stop`; tells whether it was the latter."""
        await asyncio.wait((self._exit, self._asked), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        asked = self._asked.done()
        if asked:
            self._asked = asyncio.get_running_loop().create_future()
        return asked

    def _act(self, rung: Rung) -> None:
        match rung:
            case "close":
                self._close_commands()
            case "terminate":
                self._group.signal_group(signal.SIGTERM)
                self._group.signal_group(signal.SIGCONT)  # a stopped process takes no other signal
            case "abort":
                self._group.signal(signal.SIGABRT)  # faulthandler writes every thread's stack
                self._group.signal(signal.SIGCONT)
            case "kill":
                self._group.signal_group(signal.SIGKILL)
