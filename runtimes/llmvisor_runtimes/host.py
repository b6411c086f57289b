"""The host of one backend: commands in, reports out, and the threads between.

    command pipe → reader thread ─┬─ Cancel, Pause, Resume ──────────────→ backend (plain values)
                                  ├─ Tokenize, … and prompts → prompt thread ─┐
                                  └─ Load, Close, token prompts ──────────────┴→ inbox → engine thread → report pipe
                                                                        tick thread ───────────────────→ report pipe

The engine is the process's main thread: it takes from the inbox what has come, lets the backend do one step, and
writes what the step brought in one go. The reader thread never writes, so that the end of the command pipe is noticed
whatever the others do.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from llmvisor_runtimes import limits, parent_death
from llmvisor_runtimes.backend import Backend, Encodes, LoadError, RequestError, Resumes, SharesCores, Trims
from llmvisor_runtimes.load_progress import LoadReporter
from llmvisor_runtimes.pipes import Pipes, UsesPipes
from llmvisor_runtimes.prompts import EngineRequest, Prepared, Prompted, PromptThread, check_request, internal_error
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Close,
    Command,
    Confined,
    Failed,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Pause,
    ProtocolViolation,
    Resume,
    SetThreads,
    Tick,
    TokenPrompt,
    Trim,
)
from llmvisor_runtimes.waiting import WaitingRequests, cancelled_report

EXIT_CRASHED = os.EX_SOFTWARE
"""The engine failed in a way that says nothing about the next try."""


class _Cancelled:
    """A request that was cancelled before the engine saw it."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request


class _Trim:
    """Memory runs low."""


class _Wake:
    """Something changed in the backend: look again whether there is a step to do."""


_Item = Load | Close | Prompted | Prepared | _Cancelled | _Trim | _Wake


class Host:
    """Drives one backend from `run` until the daemon closes it."""

    def __init__(self, backend: Backend, pipes: Pipes, confined: Confined | None = None) -> None:
        self._backend = backend
        self._confined = confined
        self._pipes = pipes
        if isinstance(backend, UsesPipes):
            backend.pipes = pipes
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._waiting = WaitingRequests()
        self._prompts = PromptThread(backend, pipes, self._waiting, self._inbox.put)
        self._load_reporter = LoadReporter(pipes)
        self._load_received = False
        self._closing = False
        self._loaded = False

    def run(self) -> int:
        """Serve until `Close`; gives the exit code. The main thread calls it."""
        self._pipes.send([self._hello()])
        for name, target in (("reader", self._read), ("prompt", self._prompts.run), ("tick", self._tick)):
            threading.Thread(target=_or_crash, args=(target,), name=name, daemon=True).start()
        try:
            self._run_engine()
        except Exception:  # noqa: BLE001 - the process ends, with the traceback in its log
            traceback.print_exc()
            return EXIT_CRASHED
        return os.EX_OK

    def _hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self._backend.name, self._backend.version(), os.getpid(), self._confined)

    # ------------------------------------------------------------------------------------------- engine thread

    def _run_engine(self) -> None:
        backend = self._backend
        while True:
            for item in self._take(backend.delay_seconds() if self._loaded else None):
                if isinstance(item, Close):
                    if self._loaded:
                        backend.close()
                    return
                self._handle(item)
            if self._loaded and (reports := backend.step()):
                self._pipes.send(reports)

    def _take(self, delay_seconds: float | None) -> list[_Item]:
        """What has come, after waiting for it for as long as the backend has nothing to do."""
        inbox = self._inbox
        items: list[_Item] = []
        if delay_seconds is None or delay_seconds > 0:
            try:
                items.append(inbox.get(timeout=delay_seconds))
            except queue.Empty:
                return items
        # No other thread takes from the inbox, so what `empty` denies stays there.
        while not inbox.empty():
            items.append(inbox.get())
        return items

    def _handle(self, item: Load | Prompted | Prepared | _Cancelled | _Trim | _Wake) -> None:
        if isinstance(item, Prompted | Prepared):
            self._begin(item)
        elif isinstance(item, _Cancelled):
            self._pipes.send([cancelled_report(item.request)])
        elif isinstance(item, Load):
            self._load(item)
        elif isinstance(item, _Trim):
            self._trim()

    def _trim(self) -> None:
        if self._loaded and isinstance(self._backend, Trims):
            self._backend.trim()
        gc.collect()
        free_unused_memory()

    def _begin(self, item: Prompted | Prepared) -> None:
        backend, request = self._backend, item.request

        def take() -> None:
            if isinstance(item, Prompted):
                check_request(item.request, resumes=isinstance(backend, Resumes))
                backend.generate(item.request, item.tokens, item.constraint)
            elif isinstance(backend, Encodes):
                backend.encode(item.request, item.prepared)

        try:
            self._waiting.enter(request.id, take, backend.cancel, backend.pause)
        except RequestError as error:
            self._pipes.send([Failed(request.id, error.kind, error.message, error.param)])
        except Exception as error:  # noqa: BLE001 - one request's failure, with the traceback in the log
            self._pipes.send([internal_error(request, error)])

    def _load(self, load: Load) -> None:
        try:
            info = self._backend.load(load, self._load_reporter.progress)
        except LoadError as error:
            self._load_reporter.finish()
            self._pipes.send([LoadFailed(error.reason, error.permanent)])
            return
        # What loading made lives as long as the process: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        self._loaded = True
        self._prompts.loaded = True
        self._pipes.send([Loaded(info)])

    # ------------------------------------------------------------------------------------------- reader thread

    def _read(self) -> None:
        try:
            for command in self._pipes.commands():
                self._dispatch(command)
        except ProtocolViolation as violation:
            print(f"the command pipe is broken: {violation}", file=sys.stderr, flush=True)
            parent_death.end_group()
        if self._closing:
            # The daemon may end the pipe right after `Close`; the engine then has this long to free its model.
            time.sleep(limits.close_seconds_max)
        parent_death.end_group()

    def _dispatch(self, command: Command) -> None:
        if isinstance(command, EngineRequest):
            self._accept(command)
        elif isinstance(command, Cancel):
            self._cancel(command.id)
        elif isinstance(command, Pause | Resume):
            self._pause(command.id, paused=isinstance(command, Pause))
        elif isinstance(command, SetThreads):
            if isinstance(self._backend, SharesCores):
                self._backend.set_threads(command.count)
        elif isinstance(command, Load):
            self._begin_load(command)
        elif isinstance(command, Trim):
            self._inbox.put(_Trim())
        elif isinstance(command, Close):
            self._close()
        else:
            self._prompts.put(command)

    def _accept(self, request: EngineRequest) -> None:
        if not self._waiting.add(request):
            raise ProtocolViolation(f"request id {request.id} is used twice")
        if (
            self._loaded
            and isinstance(request, Generate)
            and isinstance(request.prompt, TokenPrompt)
            and request.grammar is None
        ):
            self._inbox.put(Prompted(request, request.prompt.tokens, None))
        else:
            self._prompts.put(request)

    def _cancel(self, id: int) -> None:
        here, request = self._waiting.cancel(id)
        if request is not None:
            self._inbox.put(_Cancelled(request))
        elif not here and self._loaded:
            self._backend.cancel(id)
            self._inbox.put(_Wake())

    def _pause(self, id: int, *, paused: bool) -> None:
        if self._waiting.pause(id, paused=paused) or not self._loaded:
            return
        if paused:
            self._backend.pause(id)
        else:
            self._backend.resume(id)
            self._inbox.put(_Wake())

    def _begin_load(self, load: Load) -> None:
        if self._load_received:
            raise ProtocolViolation("Load came twice")
        self._load_received = True
        self._load_reporter.begin()
        self._inbox.put(load)

    def _close(self) -> None:
        self._closing = True
        if self._load_reporter.loading and not self._loaded:
            # Nothing interrupts an engine that loads, and there is nothing yet to free in order.
            os._exit(os.EX_OK)
        self._inbox.put(Close())

    # --------------------------------------------------------------------------------------------- tick thread

    def _tick(self) -> None:
        tokens_before = 0
        while True:
            time.sleep(limits.tick_interval_seconds)
            if self._loaded:
                now = self._backend.progress()
                tick = Tick(
                    step=now.step,
                    phase=now.phase,
                    active=now.active,
                    waiting=now.waiting,
                    tokens=now.tokens - tokens_before,
                    rss_bytes=rss_bytes(),
                    kv_used=now.kv_used,
                )
                tokens_before = now.tokens
            else:
                tick = self._load_reporter.tick(rss_bytes())
            self._pipes.send([tick])


def rss_bytes() -> int:
    """Resident memory of this process; its peak where the system has no /proc."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource  # noqa: PLC0415 - only where /proc is absent

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_unused_memory() -> None:
    """Give the system back what the C library keeps of freed memory, where it is glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _or_crash(target: Callable[[], None]) -> None:
    """Run a thread; a thread that fails takes the process with it rather than leave it half alive."""
    try:
        target()
    except BaseException:  # noqa: BLE001 - the process ends, with the traceback in its log
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_CRASHED)
