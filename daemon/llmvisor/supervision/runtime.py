"""The actor of one model: carries out what the scheduler decides, and tells it what happens.

It lives on the event loop's thread and every public method runs to its end in one go, so the scheduler sees one event
after another and nobody else touches its state. Effects that lead to further events queue up behind the first.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import Callable

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.errors import InsufficientMemory, InvalidRequest, LlmvisorError, ModelLoadFailed
from llmvisor.log import get_logger
from llmvisor.services.service import Embedded, EmbeddingRequest, Generation, Scored, ScoringRequest
from llmvisor.supervision.alarm import Alarm
from llmvisor.supervision.effects import Changed, Effect, Grant, Refuse, StartWorker, StopWorker, Ticket
from llmvisor.supervision.encoding import EmbeddingCall, ScoringCall
from llmvisor.supervision.reaper import WorkerExit
from llmvisor.supervision.requests import Arrival, RequestTable, WorkReport, generate_command
from llmvisor.supervision.setup import RuntimeSetup, make_scheduler, scheduler_settings
from llmvisor.supervision.spawn import WorkerSpec
from llmvisor.supervision.state import HAS_WORKER, State
from llmvisor.supervision.status import Facts, runtime_status
from llmvisor.supervision.stream import Answer, Call, GenerationStream, Request, refusal_error
from llmvisor.supervision.watch import ProgressWatch
from llmvisor.supervision.worker import Worker, refused_hello, told_of
from llmvisor_runtimes.protocol import Command, ProtocolViolation, Report
from llmvisor_runtimes.protocol.commands import Cancel, Load, SetThreads
from llmvisor_runtimes.protocol.reports import Hello, Loaded, LoadFailed, LoadProgress, ModelInfo, Tick


class Runtime:
    """One model's worker, its requests and its life."""

    def __init__(self, name: str, config: ModelConfig, setup: RuntimeSetup) -> None:
        self.name = name
        self.config = config
        self.loaded_at: str | None = None
        self._setup = setup
        self._log = get_logger(__name__).bind(model=name)
        self._scheduler = make_scheduler(config, setup.random)
        self._sampling = config.sampling_defaults()
        self._ids = itertools.count(1)
        self._requests = RequestTable()
        self._effects: deque[Effect] = deque()
        self._applying = False
        self._worker: Worker | None = None
        self._watch: ProgressWatch | None = None
        self._stop_asked: StopWorker | None = None
        self._start_task: asyncio.Task[None] | None = None
        self._alarm = Alarm(setup.clock, self._wake)
        self._next_config: ModelConfig | None = None
        self._failed_signature: object = None
        self._facts = Facts(name, config.tier, config.backend or "", since=setup.clock.now().isoformat())
        self._published_at = 0.0
        self._changed = asyncio.Event()
        self._ready_at = 0.0
        self.active_at = setup.clock.monotonic()
        """When a request last came or ended."""

    # ------------------------------------------------------------------------------------------------ what people ask

    @property
    def state(self) -> State:
        return self._scheduler.state

    def generate(self, generation: Generation) -> GenerationStream:
        """Begin a generation. Whatever goes wrong is raised by iterating over it."""
        request_id = next(self._ids)

        def command() -> Command:
            able = self.info.capabilities if self.info else []
            return generate_command(request_id, generation, self._sampling, self.config.max_tokens, able)

        stream = GenerationStream(request_id, choices=generation.n, command=command, send=self._send, leave=self._leave)
        self._submit(stream, Ticket(request_id, generation.n, self._now(), generation.keep_alive_seconds))
        return stream

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        """The vectors of texts. Raises an `LlmvisorError`."""
        call = EmbeddingCall(next(self._ids), request, leave=self._leave)
        self._submit(call, Ticket(call.id, 1, self._now(), request.keep_alive_seconds))
        return await call.result()

    async def score(self, request: ScoringRequest) -> Scored:
        """The scores of pairs of texts. Raises an `LlmvisorError`."""
        call = ScoringCall(next(self._ids), request, leave=self._leave)
        self._submit(call, Ticket(call.id, 1, self._now(), request.keep_alive_seconds))
        return await call.result()

    async def call(self, command: Callable[[int], Command] | None) -> Answer | None:
        """One question to the worker, given the id to ask it under; None just waits until the model is loaded.

        Raises an `LlmvisorError`.
        """
        request_id = next(self._ids)
        call = Call(request_id, command=None if command is None else command(request_id), leave=self._leave)
        self._submit(call, Ticket(request_id, 0, self._now()))
        return await call.result()

    def load(self) -> None:
        """Load the model although no request wants it."""
        self._apply(self._scheduler.load_wanted(self._now()))

    def abandon_load(self) -> None:
        """Whoever waited for the load has gone; it ends where nobody else wants it."""
        self._apply(self._scheduler.load_unwanted(self._now()))

    def unload(self, *, force: bool = False) -> None:
        self._apply(self._scheduler.unload_wanted(self._now(), force=force))

    def reset(self) -> None:
        """Forget earlier crashes, so that an unavailable model may be tried again."""
        self._apply(self._scheduler.reset(self._now()))

    def reconfigure(self, config: ModelConfig) -> None:
        """Run like this from the next worker on; the one that there is finishes what runs, and goes."""
        self._next_config = config
        if self.state in HAS_WORKER:
            self.unload()
        else:
            self._adopt()
        self.reset()
        if config.preload or config.pinned:
            self.load()

    def shutdown(self) -> None:
        """Start nothing any more, let what runs finish, and go."""
        self._apply(self._scheduler.shutdown(self._now()))

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        self._send(SetThreads(threads))

    def end_requests(self, error: LlmvisorError) -> None:
        """End everything that is in flight with this error."""
        for request in self._requests.all():
            request.fail(error)
            self._leave(request.id)

    @property
    def info(self) -> ModelInfo | None:
        """What the model is, while it is loaded."""
        return self._facts.info

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._scheduler.queued + self._scheduler.running

    async def wait_while(self, *states: State) -> State:
        """Wait until the runtime is in none of these states, and give the one that it is in."""
        while self.state in states:
            await self._changed.wait()
        return self.state

    # ------------------------------------------------------------------------------------------------ requests

    def _submit(self, request: Request, ticket: Ticket) -> None:
        if self.state is State.FAILED and self._signature() != self._failed_signature:
            self._log.info("the model's file has changed; trying it again")
            self.reset()
        self.active_at = ticket.arrived
        self._requests.add(request, Arrival(ticket.arrived, self.state is State.READY))
        self._apply(self._scheduler.submit(ticket))

    def _grant(self, request_id: int) -> None:
        request = self._requests.granted(request_id, self._now(), self._ready_at)
        try:
            command = request.command()
            if command is not None:
                self._send(command)
                return
        except ValueError as error:
            request.fail(InvalidRequest(f"the request is too large for the worker: {error}"))
        except LlmvisorError as error:
            request.fail(error)
        if isinstance(request, Call):
            request.answer(None)
        self._end(request_id)

    def _remove(self, request_id: int) -> Request | None:
        self.active_at = self._now()
        return self._requests.remove(request_id)

    def _end(self, request_id: int) -> None:
        self._remove(request_id)
        self._apply(self._scheduler.ended(request_id, self._now()))

    def _leave(self, request_id: int) -> None:
        """Whoever asked is gone."""
        if request_id not in self._requests:
            return
        if self._requests.waits(request_id):
            self._remove(request_id)
            self._apply(self._scheduler.withdrawn(request_id, self._now()))
        elif self._requests.leave(request_id):
            # Its place is free only when the worker says that it has let go of it.
            self._send(Cancel(request_id))

    def _refuse(self, refusal: Refuse) -> None:
        request = self._remove(refusal.id)
        if request is not None:
            request.fail(refusal_error(self.name, refusal))

    # ------------------------------------------------------------------------------------------------ effects

    def _apply(self, effects: list[Effect]) -> None:
        self._effects.extend(effects)
        if self._applying:
            return
        self._applying = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._applying = False
        computes = self._setup.cores.begin if self._scheduler.running else self._setup.cores.end
        computes(self.name)
        self._set_alarm()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Grant(request_id):
                self._grant(request_id)
            case Refuse():
                self._refuse(effect)
            case StartWorker():
                self._stop_asked = None
                # In a context of its own: the worker outlives the request that starts it, and logs under its own name.
                self._start_task = asyncio.get_running_loop().create_task(
                    self._start(), name=f"start {self.name}", context=contextvars.Context()
                )
            case StopWorker(rung, reason):
                self._stop_asked = effect
                if self._worker is not None:
                    self._worker.stop(rung, reason)
            case Changed(old, new):
                self._enter(old, new)

    def _enter(self, old: State, new: State) -> None:
        self._facts.since = self._setup.clock.now().isoformat()
        if new is State.FAILED:
            self._failed_signature = self._signature()
        if new not in HAS_WORKER:
            self._adopt()
            self._setup.cores.forget(self.name)
            self._facts.progress = self._facts.tick = self._facts.info = self.loaded_at = None
        say = self._log.warning if new in {State.BACKOFF, State.FAILED} else self._log.info
        reason = self._scheduler.error if new in {State.BACKOFF, State.FAILED} else None
        say(f"{old.value} → {new.value}", **({"reason": reason} if reason else {}))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._publish()

    def _set_alarm(self) -> None:
        self._alarm.set(self._scheduler.next_wake(), self._watch.deadline() if self._watch is not None else None)

    def _wake(self) -> None:
        now = self._now()
        self._apply(self._scheduler.wake(now))
        if self._watch is not None and (reason := self._watch.hung(now)) is not None:
            self._watch = None
            self._apply(self._scheduler.hung(reason))
        self._set_alarm()

    def _adopt(self) -> None:
        config, self._next_config = self._next_config, None
        if config is not None:
            self.config, self._sampling = config, config.sampling_defaults()
            self._scheduler.settings = scheduler_settings(config)
            self._facts.tier, self._facts.backend = config.tier, config.backend or ""

    # ------------------------------------------------------------------------------------------------ the worker

    async def _start(self) -> None:
        try:
            await self._setup.admit(self.name)
            if self._stop_asked is not None:
                self._gone(self._stop_asked.reason)
                return
            backend = self.config.backend or ""
            self._watch = ProgressWatch(stall_seconds=self.config.stall_timeout, now=self._now())
            spec = WorkerSpec(model=self.name, backend=backend, python=self._setup.python(backend), env=self.config.env)
            self._worker = await self._setup.start_worker(
                spec, on_report=self._on_report, on_line=self._on_line, on_exit=self._on_exit
            )
            self._facts.pid = self._worker.pid
            self._log.info("worker started", pid=self._worker.pid, backend=backend)
            if self._stop_asked is not None:
                self._worker.stop(self._stop_asked.rung, self._stop_asked.reason)
            self._set_alarm()
        except InsufficientMemory as error:
            self._apply(self._scheduler.denied(str(error), self._now()))
        except ModelLoadFailed as error:
            self._gone(str(error), permanent=not error.retryable)
        except Exception as error:  # noqa: BLE001 - no threads or descriptors left, or a bug: nobody waits for ever
            self._log.error("the worker could not be started", exc_info=error)
            self._gone(f"the worker could not be started: {error!r}")

    def _on_line(self, line: str) -> None:
        self._log.debug(line, source="worker")

    def _on_exit(self, exit: WorkerExit) -> None:
        self._worker = None
        self._facts.last_lines = exit.last_lines
        self._facts.pid = None
        if self._scheduler.state is not State.STOPPING:
            self._log.error("worker gone", reason=exit.describe())
        self._gone(exit.describe(), permanent=exit.permanent)

    def _gone(self, reason: str, *, permanent: bool = False) -> None:
        self._watch = None
        self._apply(self._scheduler.exited(reason, self._now(), permanent=permanent))

    def _send(self, command: Command) -> None:
        if self._worker is not None:
            self._worker.send(command)

    def _on_report(self, report: Report) -> None:
        if self._stop_asked is not None and self._stop_asked.rung == "kill":
            return  # it broke the protocol: nothing more of it is believed
        if self._watch is not None:
            self._watch.observe(report, self._now())
        match report:
            case Tick():
                before, self._facts.tick = self._facts.tick, report
                if before is None or not report.phase == before.phase == "idle":
                    self._publish()
            case LoadProgress():
                self._facts.progress = report
                self._publish(often=True)
            case Loaded(info):
                self._on_loaded(info)
            case LoadFailed(reason, permanent):
                self._apply(self._scheduler.broken(reason, permanent=permanent))
            case Hello():
                self._on_hello(report)
            case _:
                self._route(report)

    def _route(self, report: WorkReport) -> None:
        try:
            ended = self._requests.route(report)
        except ProtocolViolation as violation:
            self._violated(str(violation))
            return
        for request_id in ended:
            self._end(request_id)

    def _on_hello(self, hello: Hello) -> None:
        if (reason := refused_hello(hello)) is not None:
            self._apply(self._scheduler.broken(reason, permanent=True))
            return
        self._send(Load(self.name, self.config.path or "", self.config.model_options(self._setup.state_dir)))

    def _on_loaded(self, info: ModelInfo) -> None:
        if self.state not in {State.LOADING, State.STOPPING}:
            self._violated("it loaded twice")
            return
        self._facts.info = info
        self.loaded_at = self._setup.clock.now().isoformat()
        self._ready_at = self._now()
        self._log.info("loaded", **told_of(info))
        self._apply(self._scheduler.loaded(max(1, info.slots), self._ready_at))

    def _violated(self, what: str) -> None:
        self._apply(self._scheduler.broken(f"the worker broke the protocol: {what}"))

    # ------------------------------------------------------------------------------------------------ what it shows

    def _now(self) -> float:
        return self._setup.clock.monotonic()

    def _signature(self) -> object:
        return self._setup.file_signature(self.config)

    def _publish(self, *, often: bool = False) -> None:
        now = self._now()
        if often and now - self._published_at < 1 / limits.job_events_per_second_max:
            return
        self._published_at = now
        self._setup.publish(self.status())

    def status(self) -> RuntimeStatus:
        """All that is known at the moment."""
        return runtime_status(self._scheduler, self._facts, self._now(), threads=self._setup.cores.threads(self.name))
