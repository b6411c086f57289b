"""The worker that a runtime has at the moment, from the wish for one to its end."""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Callable

from llmvisor.config.tree import ModelConfig
from llmvisor.errors import InsufficientMemory, ModelLoadFailed
from llmvisor.log import get_logger
from llmvisor.supervision.handover import WorkerHandover
from llmvisor.supervision.scheduling.effects import StopWorker
from llmvisor.supervision.scheduling.poison import CrashKind
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.workers.confinement import confinement
from llmvisor.supervision.workers.postmortem import FlightRecorder
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor.supervision.workers.watch import ProgressWatch
from llmvisor.supervision.workers.worker import Worker
from llmvisor_runtimes.protocol import Command, Hello, Report

_FAULT_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}
)


class WorkerPlace:
    """Holds one worker at most. The callbacks run on the loop: `on_start` once it runs, `on_admitted` once it may load
    as well, `on_report` for what it says from then on, `on_denied` where there is no room for it, `on_gone` once it has
    ended or could not be started (then without a `WorkerExit`).

    A worker starts while others still leave to make room for it: it is asked to load once they have gone.
    """

    def __init__(
        self,
        name: str,
        setup: RuntimeSetup,
        *,
        key: Callable[[], str],
        on_start: Callable[[int], None],
        on_admitted: Callable[[], None],
        on_report: Callable[[Report], None],
        on_denied: Callable[[str], None],
        on_gone: Callable[[str, bool, WorkerExit | None], None],
    ) -> None:
        self.recorder = FlightRecorder(0.0)
        self._name = name
        self._key = key
        self._setup = setup
        self._log = get_logger(__name__, model=name)
        self._on_start = on_start
        self._on_admitted = on_admitted
        self._on_report = on_report
        self._on_denied = on_denied
        self._on_gone = on_gone
        self._worker: Worker | None = None
        self._watch: ProgressWatch | None = None
        self._stop_asked: StopWorker | None = None
        self._admitted = False
        self._hello: Hello | None = None
        """Said before its memory was there."""
        self._denied: str | None = None
        self._start_task: asyncio.Task[None] | None = None

    @property
    def worker(self) -> Worker | None:
        """The process, while it runs."""
        return self._worker

    # ------------------------------------------------------------------------------------------------ its life

    def start(self, config: ModelConfig, state_folder: str) -> None:
        """Start a worker, once there is room for it."""
        self._stop_asked = self._denied = self._hello = None
        self._admitted = False
        # In a context of its own: the worker outlives the request that starts it, and logs under its own name.
        self._start_task = asyncio.get_running_loop().create_task(
            self._start(config, state_folder), name=f"start {self._name}", context=contextvars.Context()
        )

    def stop(self, stop: StopWorker) -> None:
        """End it, or what is to become it."""
        self._stop_asked = stop
        if self._worker is not None:
            self._worker.stop(stop.rung, stop.reason)

    def hand_over(self) -> WorkerHandover | None:
        """All that another run of the daemon needs to go on with the worker; None where none serves."""
        if self._worker is None or self._stop_asked is not None:
            return None
        return self._worker.hand_over()

    def take_over(self, given: WorkerHandover, config: ModelConfig) -> None:
        """Go on with the worker of an earlier run. Raises OSError."""
        backend = config.backend or ""
        spec = WorkerSpec(model=self._name, backend=backend, python=self._setup.python(backend), env=config.env)
        self._admitted = True
        self._worker = self._setup.adopt_worker(
            given, spec, on_report=self._reported, on_line=self._on_line, on_exit=self._exited
        )
        self._watch = ProgressWatch(stall_seconds=config.stall_timeout, now=self._now())
        self.recorder = FlightRecorder(self._now(), backend)
        self.recorder.pid = self._worker.pid
        self._log.info("worker kept over the upgrade", pid=self._worker.pid, backend=backend)

    async def _start(self, config: ModelConfig, state_folder: str) -> None:
        memory: asyncio.Future[None] | None = None
        try:
            memory = await self._setup.admit(self._key())
            if self._stop_asked is not None:
                self._gone(self._stop_asked.reason)
                return
            worker = await self._start_process(config, state_folder)
            await self._wait_for(memory, worker)
            self._admit(config)
        except InsufficientMemory as error:
            self._on_denied(str(error))
        except ModelLoadFailed as error:
            self._gone(str(error), permanent=not error.retryable)
        except Exception as error:  # noqa: BLE001 - no threads or descriptors left, or a bug: nobody waits for ever
            self._log.error("the worker could not be started", exc_info=error)
            reason = f"the worker could not be started: {error!r}"
            if self._worker is None:
                self._gone(reason)
            else:
                self._worker.stop("kill", reason)  # told once it has gone
        finally:
            if memory is not None and not memory.cancel() and not memory.cancelled():
                memory.exception()  # a refusal that came too late to matter

    async def _start_process(self, config: ModelConfig, state_folder: str) -> Worker:
        backend = config.backend or ""
        self.recorder = FlightRecorder(self._now(), backend)
        confined = confinement(config, state_folder, otherwise=self._setup.sandbox)
        python = self._setup.python(backend)
        spec = WorkerSpec(model=self._name, backend=backend, python=python, env=config.env, confinement=confined)
        worker = self._worker = await self._setup.start_worker(
            spec, on_report=self._reported, on_line=self._on_line, on_exit=self._exited
        )
        self.recorder.pid = worker.pid
        self._log.info("worker started", pid=worker.pid, backend=backend)
        if self._stop_asked is not None:
            worker.stop(self._stop_asked.rung, self._stop_asked.reason)
        self._on_start(worker.pid)
        return worker

    async def _wait_for(self, memory: asyncio.Future[None], worker: Worker) -> None:
        try:
            await memory
        except InsufficientMemory as error:
            self._denied = str(error)  # told once it has gone
            worker.stop("kill", "there is no memory for its model")

    def _admit(self, config: ModelConfig) -> None:
        """It has its memory, and may load."""
        if self._denied is not None or self._stop_asked is not None:
            return
        self._admitted = True
        self._watch = ProgressWatch(stall_seconds=config.stall_timeout, now=self._now())
        self._on_admitted()
        if self._hello is not None:
            self._reported(self._hello)

    def _exited(self, exit: WorkerExit) -> None:
        self._worker = None
        if self._start_task is not None:
            self._start_task.cancel()  # it waits for memory no more
        if self._denied is not None and self._stop_asked is None:
            self._on_denied(self._denied)
        else:
            self._gone(exit.describe(), permanent=exit.permanent, exit=exit)

    def _gone(self, reason: str, *, permanent: bool = False, exit: WorkerExit | None = None) -> None:
        self._watch = None
        self._on_gone(reason, permanent, exit)

    # ------------------------------------------------------------------------------------------------ talking to it

    def send(self, command: Command) -> None:
        """Never waits; without effect while there is no worker. Raises ValueError for what is too long for a frame."""
        if self._worker is not None:
            size_bytes = self._worker.send(command)
            self.recorder.sent(command, size_bytes, self._now())

    def _reported(self, report: Report) -> None:
        if self._stop_asked is not None and self._stop_asked.rung == "kill":
            return  # it broke the protocol: nothing more of it is believed
        if not self._admitted:
            self._hello = report if isinstance(report, Hello) else self._hello
            return
        now = self._now()
        if self._watch is not None:
            self._watch.observe(report, now)
        self.recorder.received(report, now)
        self._on_report(report)

    def _on_line(self, line: str) -> None:
        self._log.debug(line, source="worker")

    # ------------------------------------------------------------------------------------------------ its progress

    def hang_deadline(self) -> float | None:
        """When it counts as hung, if nothing comes until then."""
        return None if self._watch is None else self._watch.deadline()

    def hung(self, now: float) -> str | None:
        """Why it counts as hung, told once; None where it gets on."""
        reason = None if self._watch is None else self._watch.hung(now)
        if reason is not None:
            self._watch = None
        return reason

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped its process, so that it cannot get on."""
        return self._worker is not None and self._worker.is_stopped

    def expect_progress(self, stall_seconds: float) -> None:
        """It counts as hung after so long without any from now on."""
        if self._watch is not None:
            self._watch.stall_seconds = stall_seconds

    def _now(self) -> float:
        return self._setup.clock.monotonic()


def crash_kind(exit: WorkerExit | None) -> CrashKind:
    """Whether a worker failed by itself, or was ended: perhaps for want of memory, or by somebody."""
    if exit is None or exit.signal is None or exit.signal in _FAULT_SIGNALS:
        return "fault"
    if exit.requested or exit.violation is not None:
        return "fault"
    return "killed" if exit.possible_oom else "outside"
