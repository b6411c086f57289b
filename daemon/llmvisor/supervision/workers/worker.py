"""One worker as the runtime's actor sees it: start it, send to it, stop it, and be told when it has gone."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.log import get_logger
from llmvisor.supervision.handover import WorkerHandover
from llmvisor.supervision.memory.machine_memory import oom_kills
from llmvisor.supervision.workers.adopt import AdoptedProcess
from llmvisor.supervision.workers.capture import LineLog, LogCapture
from llmvisor.supervision.workers.channel import Channel
from llmvisor.supervision.workers.confinement import make_scratch, remove_scratch
from llmvisor.supervision.workers.orphans import OrphanJournal
from llmvisor.supervision.workers.reaper import ProcessGroup, Reaper, Rung, WorkerExit
from llmvisor.supervision.workers.spawn import Spawned, SpawnRefused, WorkerSpec, spawn
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Close, Command, Hello, ModelInfo, Report

_log = get_logger(__name__)
_STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})


def refused_hello(hello: Hello) -> str | None:
    """Why this daemon cannot talk to a worker; None where it can."""
    if hello.protocol_version == PROTOCOL_VERSION:
        return None
    return (
        f"the worker speaks protocol version {hello.protocol_version}, this daemon {PROTOCOL_VERSION}: "
        f"install the same llmvisor for the {hello.backend} backend"
    )


def told_of(info: ModelInfo) -> dict[str, object]:
    """What the log says of a loaded model."""
    seconds = round(info.load_seconds, 2)
    return {"seconds": seconds, "slots": info.slots, "n_ctx": info.n_ctx, "version": info.backend_version}


async def start_worker(
    spec: WorkerSpec,
    *,
    on_report: Callable[[Report], None],
    on_line: Callable[[str], None],
    on_exit: Callable[[WorkerExit], None],
    journal: OrphanJournal,
    clock: Clock,
    nonce_source: Callable[[], str],
) -> Worker:
    """Start a worker; belongs on the main thread's loop.

    The callbacks run on the loop, none before this has returned to who awaits it directly. `on_exit` is called once:
    the process has been reaped then, what it had started killed, its pipes drained and closed, and no other call
    follows. `nonce_source` gives unguessable hexadecimal digits. Raises `SpawnFailed`, with nothing left behind.
    """
    nonce = nonce_source()
    spec = _with_scratch(spec, journal.run_dir, nonce)
    try:
        spawned = await spawn(spec, nonce=nonce)
    except BaseException:
        remove_scratch(journal.run_dir, nonce)
        raise
    try:
        journal.record(pid=spawned.process.pid, nonce=spawned.nonce, model=spec.model)
    except (OSError, ValueError) as error:
        # A full disk costs the net under the nets, not the model.
        _log.warning("the worker is not in the orphan journal", model=spec.model, error=str(error))
    return Worker(spec, spawned, on_report=on_report, on_line=on_line, on_exit=on_exit, journal=journal, clock=clock)


def _with_scratch(spec: WorkerSpec, run_dir: Path, nonce: str) -> WorkerSpec:
    """A confined worker has a folder of its own for temporary files, for as long as it lives. Raises `SpawnRefused`."""
    confinement = spec.confinement
    if confinement is None:
        return spec
    temporary = spec.env.get("TMPDIR")
    if temporary is None:
        try:
            temporary = str(make_scratch(run_dir, nonce))
        except OSError as error:
            message = f"the worker of {spec.model} has no place for temporary files: {error.strerror}: {run_dir}"
            raise SpawnRefused(message, errno_name=errno.errorcode.get(error.errno or 0, "EIO")) from error
    env = {"TMPDIR": temporary} | spec.env
    confinement = msgspec.structs.replace(confinement, write=[*confinement.write, temporary])
    return msgspec.structs.replace(spec, env=env, confinement=confinement)


def adopt_worker(
    given: WorkerHandover,
    spec: WorkerSpec,
    *,
    on_report: Callable[[Report], None],
    on_line: Callable[[str], None],
    on_exit: Callable[[WorkerExit], None],
    journal: OrphanJournal,
    clock: Clock,
) -> Worker:
    """A worker that an earlier run of this process started; as `start_worker` otherwise.

    Raises OSError where it is no child of this process, or its pipes are not there; the descriptors stay open then.
    """
    for fd in given.fds:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    process = AdoptedProcess(given.pid)
    spawned = Spawned(
        process,
        given.nonce,
        given.command_fd,
        given.report_fd,
        given.logs,
        unread=given.unread,
        unsent=given.unsent,
    )
    return Worker(
        spec,
        spawned,
        on_report=on_report,
        on_line=on_line,
        on_exit=on_exit,
        journal=journal,
        clock=clock,
        last_lines=given.last_lines,
    )


class Worker:
    """A worker process that `start_worker` started, or `adopt_worker` took over."""

    def __init__(
        self,
        spec: WorkerSpec,
        spawned: Spawned,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
        on_exit: Callable[[WorkerExit], None],
        journal: OrphanJournal,
        clock: Clock,
        last_lines: Sequence[bytes] = (),
    ) -> None:
        self.pid = spawned.process.pid
        self._oom_kills = oom_kills()
        self._nonce = spawned.nonce
        self._journal = journal
        self._on_exit = on_exit
        self._reason: str | None = None
        self._violation: str | None = None
        self._mute = False
        self._open_pipes = 1 + len(spawned.logs)
        self._drained = asyncio.Event()
        self._hang_up: asyncio.TimerHandle | None = None
        self._log = LineLog(on_line=on_line, clock=clock, ring=last_lines)
        self._captures = [LogCapture(pipe, log=self._log, on_eof=self._pipe_ended) for pipe in spawned.logs]
        self._channel = Channel(
            command_fd=spawned.command_fd,
            report_fd=spawned.report_fd,
            on_report=on_report,
            on_violation=self._on_violation,
            on_eof=self._on_report_eof,
            unread=spawned.unread,
            unsent=spawned.unsent,
        )
        self._group = ProcessGroup(self.pid)
        self._reaper = Reaper(spawned.process, self._group, close_commands=self._close_commands)
        self._life = asyncio.create_task(self._live(), name=f"worker {spec.model} {self.pid}")
        self._life.add_done_callback(_tell_failure)

    @property
    def last_lines(self) -> list[str]:
        """The last lines of its stdout and stderr."""
        return self._log.last_lines

    def send(self, command: Command) -> int:
        """Send a command, of so many bytes. Never waits; a worker that has gone, or is asked to close, gets nothing.

        Raises ValueError where the command is longer than a frame may be.
        """
        return self._channel.send(command)

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped the process (SIGSTOP, a debugger), so that it cannot get on."""
        with suppress(psutil.Error):
            return psutil.Process(self.pid).status() in _STOPPED
        return False

    def stop(self, rung: Rung, reason: str) -> None:
        """End the worker, from this rung of the kill ladder on: see `Reaper`.

        Asked again it goes up to a higher rung, never down. Ends in a call of `on_exit`, in bounded time.
        """
        if self._reaper.exited:
            return
        self._reason = self._reason or reason
        self._reaper.stop(rung)

    def hand_over(self) -> WorkerHandover | None:
        """All that another run of this daemon needs to go on with it; None for one that ends.

        It stays as it is: whoever is given this takes over once this run is gone.
        """
        channel = None if self._reaper.exited or self._reaper.asked else self._channel.hand_over()
        if channel is None:
            return None
        command_fd, report_fd, unread, unsent = channel
        logs = [pipe for capture in self._captures if (pipe := capture.hand_over()) is not None]
        return WorkerHandover(
            self.pid, self._nonce, command_fd, report_fd, logs, unread=unread, unsent=unsent, last_lines=self._log.ring
        )

    # ------------------------------------------------------------------------------------------------------- its end

    async def _live(self) -> None:
        code: int | None = None
        try:
            code = await self._reaper.reap()
            async with asyncio.timeout(limits.pipe_drain_seconds_max):
                await self._drained.wait()
        except TimeoutError:
            pass  # something that left the group holds a pipe; it may write to nobody
        finally:
            self._release()
        if code is not None:
            self._journal.remove(self._nonce)
        self._on_exit(self._exit(code))

    def _release(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
        self._channel.close()
        for capture in self._captures:
            capture.close()
        self._log.tell_left_out()
        self._group.close()
        remove_scratch(self._journal.run_dir, self._nonce)

    def _exit(self, code: int | None) -> WorkerExit:
        violation = self._violation
        if violation is None and self._mute and code in {None, -signal.SIGABRT, -signal.SIGKILL}:
            violation = "closed its report pipe and went on running"
        if violation is None and self._channel.cut is not None and code == 0 and self._reason is None:
            violation = f"sent garbage: {self._channel.cut}"  # else a crash in the middle of a write
        return WorkerExit(
            code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            requested=self._reason is not None and violation is None,
            violation=violation,
            last_lines=self.last_lines,
            reason=self._reason,
            memory_ran_out=None if self._oom_kills is None else oom_kills() != self._oom_kills,
        )

    def _close_commands(self) -> None:
        self._channel.send(Close())
        self._channel.finish()

    def _on_violation(self, what: str) -> None:
        self._violation = what
        self._reaper.stop("kill")

    def _on_report_eof(self) -> None:
        self._pipe_ended()
        if not self._reaper.exited:
            loop = asyncio.get_running_loop()
            self._hang_up = loop.call_later(limits.hang_up_grace_seconds, self._on_mute)

    def _on_mute(self) -> None:
        """It closed its pipe and goes on: nothing more will be heard of it."""
        if not self._reaper.exited and not self._reaper.asked:
            self._mute = True
            self._reaper.stop("abort")

    def _pipe_ended(self) -> None:
        self._open_pipes -= 1
        if self._open_pipes == 0:
            self._drained.set()


def _tell_failure(life: asyncio.Task[None]) -> None:
    """A failure in a callback is a fault of the daemon's own: the loop's handler decides, as for any other."""
    if not life.cancelled() and (error := life.exception()) is not None:
        life.get_loop().call_exception_handler({"message": "a worker's end was not handled", "exception": error})
