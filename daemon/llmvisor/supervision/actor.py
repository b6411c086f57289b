"""The actor of one model: carries out what the scheduler decides, and tells it what happens.

It lives on the event loop's thread and every method runs to its end in one go, so the scheduler sees one event after
another and nobody else touches its state. Effects that lead to further events queue up behind the first. What people
ask of it stands in `runtime.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.errors import InvalidRequest, LlmvisorError, RequestTimeout
from llmvisor.log import get_logger
from llmvisor.supervision.alarm import Alarm
from llmvisor.supervision.configured import Configured
from llmvisor.supervision.requests import Arrival, RequestTable, WorkReport, digest
from llmvisor.supervision.scheduling.effects import (
    Changed,
    Effect,
    Expire,
    Grant,
    Refuse,
    StartWorker,
    StopWorker,
    Suspend,
    Ticket,
)
from llmvisor.supervision.scheduling.poison import Crash, Quarantine
from llmvisor.supervision.scheduling.state import HAS_WORKER, State
from llmvisor.supervision.setup import RuntimeSetup, make_scheduler, restart_limits, scheduler_settings
from llmvisor.supervision.status import Facts, runtime_status
from llmvisor.supervision.stream import Call, GenerationStream, Request, poison_error, refusal_error
from llmvisor.supervision.worker_place import WorkerPlace, crash_kind
from llmvisor.supervision.workers.confinement import state_folder
from llmvisor.supervision.workers.postmortem import Postmortems
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor.supervision.workers.worker import refused_hello, told_of
from llmvisor_runtimes.protocol import Command, ProtocolViolation, Report
from llmvisor_runtimes.protocol.commands import Cancel, Load
from llmvisor_runtimes.protocol.reports import Hello, Loaded, LoadFailed, LoadProgress, ModelInfo, Tick


class Actor:
    """One model's worker, and the requests that wait for it or run in it."""

    def __init__(self, name: str, config: ModelConfig, setup: RuntimeSetup, *, key: str | None = None) -> None:
        self.name = name
        self.key = key or name
        """What tells two runtimes of one model apart, where one is about to replace the other."""
        self._configured = Configured(config)
        self.loaded_at: str | None = None
        self._setup = setup
        self._log = get_logger(__name__, model=name)
        self._scheduler = make_scheduler(config, setup.random)
        self._ids = itertools.count(1)
        self._requests = RequestTable()
        self._effects: deque[Effect] = deque()
        self._applying = False
        self._place = WorkerPlace(
            name,
            setup,
            key=lambda: self.key,
            on_start=self._on_start,
            on_admitted=self._set_alarm,
            on_report=self._on_report,
            on_denied=self._on_denied,
            on_gone=self._on_gone,
        )
        self._quarantine = Quarantine(
            seconds=limits.poison_quarantine_seconds, entries_max=limits.poison_quarantined_max
        )
        self.postmortems = Postmortems(name, setup.clock)
        self._alarm = Alarm(setup.clock, self._wake)
        self._failed_signature: object = None
        self._loaded_as: object = None
        """What tokens mean: another worker goes on with a text only where it is the same."""
        self._facts = Facts(name, config.tier, config.backend or "", since=setup.clock.now().isoformat())
        self._published_at = 0.0
        self._changed = asyncio.Event()
        self._unused = asyncio.Event()
        self.ready_at = 0.0
        """When the model was last loaded."""
        self.active_at = setup.clock.monotonic()
        """When a request last came or ended."""

    @property
    def state(self) -> State:
        return self._scheduler.state

    @property
    def config(self) -> ModelConfig:
        """What the worker runs with, or ran with."""
        return self._configured.now

    @property
    def info(self) -> ModelInfo | None:
        """What the model is, while it is loaded."""
        return self._facts.info

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._scheduler.queued + self._scheduler.running

    def load(self) -> None:
        """Load the model although no request wants it."""
        self._apply(self._scheduler.load_wanted(self._now()))

    def unload(self, *, force: bool = False) -> None:
        self._apply(self._scheduler.unload_wanted(self._now(), force=force))

    def reset(self) -> None:
        """Forget earlier crashes, so that an unavailable model may be tried again."""
        self._quarantine.clear()
        self._apply(self._scheduler.reset(self._now()))

    # ------------------------------------------------------------------------------------------------ requests

    def _submit(self, request: Request, ticket: Ticket) -> None:
        if self.state is State.FAILED and self._signature() != self._failed_signature:
            self._log.info("the model's file has changed; trying it again")
            self.reset()
        self.active_at = ticket.arrived
        self._setup.arrived(self.name)
        if self._quarantine:
            left = self._quarantine.seconds_left(digest(self.name, request.asked), ticket.arrived)
            if left is not None:
                request.fail(poison_error(self.name, "the same request has ended two workers", left))
                return
        self._requests.add(request, Arrival(ticket.arrived, self.state is State.READY))
        self._apply(self._scheduler.submit(ticket))

    def _grant(self, request_id: int) -> None:
        request = self._requests.granted(request_id, self._now(), self.ready_at)
        try:
            if isinstance(request, GenerationStream):
                request.enter(self._loaded_as)
            command = request.command()
            if command is not None:
                self._send(command)
                request.sent()
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

    def _suspend(self, request_id: int) -> None:
        """Its worker is gone: it waits for the next one, unless nobody wants it any more."""
        if self._requests.suspend(request_id, self._now()):
            return
        self._remove(request_id)
        self._apply(self._scheduler.withdrawn(request_id, self._now()))

    def _refuse(self, refusal: Refuse) -> None:
        request = self._remove(refusal.id)
        if request is not None and refusal.kind == "poison_request":
            sha256 = digest(self.name, request.asked)
            self._log.warning("a request is refused as the cause of crashes", sha256=sha256, reason=refusal.reason)
            self._quarantine.add(sha256, self._now())
            request.fail(poison_error(self.name, refusal.reason, limits.poison_quarantine_seconds))
        elif request is not None:
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
        computes(self.key)
        if not self.in_flight:
            self._unused.set()
        self._set_alarm()
        self._setup.settled()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Grant(request_id):
                self._grant(request_id)
            case Refuse():
                self._refuse(effect)
            case Expire(request_id):
                self._requests[request_id].fail(RequestTimeout(f"{self.name}: the request's time is over"))
                self._leave(request_id)
            case Suspend(request_id):
                self._suspend(request_id)
            case StartWorker():
                self._place.start(self.config, self._state_folder())
            case StopWorker():
                self._place.stop(effect)
            case Changed(old, new):
                self._enter(old, new)

    def _enter(self, old: State, new: State) -> None:
        self._facts.since = self._setup.clock.now().isoformat()
        if new is State.FAILED:
            self._failed_signature = self._signature()
        if new not in HAS_WORKER:
            self._adopt()
            self._setup.cores.forget(self.key)
            self._facts.progress = self._facts.tick = self._facts.info = self.loaded_at = None
        say = self._log.warning if new in {State.BACKOFF, State.FAILED} else self._log.info
        reason = self._scheduler.error if new in {State.BACKOFF, State.FAILED} else None
        say(f"{old.value} → {new.value}", **({"reason": reason} if reason else {}))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._publish()

    def _set_alarm(self) -> None:
        self._alarm.set(self._scheduler.next_wake(), self._place.hang_deadline())

    def _wake(self) -> None:
        now = self._now()
        self._apply(self._scheduler.wake(now))
        if (reason := self._place.hung(now)) is not None:
            if stopped := self._place.is_stopped:
                reason = f"{reason}: the process was stopped from outside"
            self._apply(self._scheduler.hung(reason, kind="outside" if stopped else "fault"))
        self._set_alarm()

    def _adopt(self) -> None:
        if not self._finishes_as_it_was() and self._configured.adopt():
            self._configure()

    def _finishes_as_it_was(self) -> bool:
        """Whether texts wait that only a worker like the last one can go on with, before another model is loaded."""
        old, new = self.config, self._configured.latest
        if (old.backend, old.path) == (new.backend, new.path) or not self._requests.begun_wait():
            return False
        return self._loaded_as == self._meaning()  # the file is still there, and the same

    def _meaning(self) -> object:
        return (self.config.backend, self.config.path, self._signature())

    def _configure(self) -> None:
        """What is configured now holds for everything but the worker that there is."""
        config = self.config
        self._apply(self._scheduler.configure(scheduler_settings(config), restart_limits(config), self._now()))
        self._facts.tier, self._facts.backend = config.tier, config.backend or ""
        self._place.expect_progress(config.stall_timeout)

    def _falls_back(self, reason: str) -> bool:
        """The model cannot be loaded: whether it is loaded as it was before instead, for all who wait."""
        if self.state is not State.LOADING or not self._configured.fall_back(reason):
            return False
        self.unload(force=True)
        self.load()
        return True

    # ------------------------------------------------------------------------------------------------ the worker

    def _on_start(self, pid: int) -> None:
        self._facts.pid = pid
        self._publish()

    def _on_denied(self, reason: str) -> None:
        self._facts.pid = None
        self._falls_back(reason)
        self._apply(self._scheduler.denied(reason, self._now()))

    def _on_gone(self, reason: str, permanent: bool, exit: WorkerExit | None) -> None:
        self._facts.pid = None
        now, unasked = self._now(), self.state is not State.STOPPING
        if exit is not None:
            self._facts.last_lines = exit.last_lines
            if unasked:
                self._log.error("worker gone", reason=reason)
        self._falls_back(reason)
        inside = self._requests.inside(self.name, now) if exit is not None and unasked else []
        state = self.state
        crash = Crash(crash_kind(exit), self._requests.progressed())
        effects = self._scheduler.exited(reason, now, permanent=permanent, crash=crash)
        if going_on := sum(isinstance(effect, Suspend) for effect in effects):
            self._log.info("requests wait for the next worker", requests=going_on)
        if exit is not None and unasked:
            self.postmortems.add(
                self._place.recorder, exit, state=state.value, reason=reason, inside=inside, effects=effects
            )
        self._apply(effects)

    def _send(self, command: Command) -> None:
        self._place.send(command)

    def _on_report(self, report: Report) -> None:
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
                if not self._falls_back(reason):
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
        if (suspect := self._scheduler.on_probation) is not None:
            self._apply(self._scheduler.progressed(suspect, self._requests.brought(suspect), self._now()))

    def _on_hello(self, hello: Hello) -> None:
        if (reason := refused_hello(hello)) is not None:
            self._apply(self._scheduler.broken(reason, permanent=True))
            return
        self._facts.confined = hello.confined
        self._loaded_as = self._meaning()
        self._send(Load(self.name, self.config.path or "", self.config.model_options(self._state_folder())))

    def _state_folder(self) -> str:
        return state_folder(self._setup.state_dir, self.name)

    def _on_loaded(self, info: ModelInfo) -> None:
        if self.state not in {State.LOADING, State.STOPPING}:
            self._violated("it loaded twice")
            return
        self._facts.info = info
        self.loaded_at = self._setup.clock.now().isoformat()
        self.ready_at = self._now()
        self._log.info("loaded", **told_of(info))
        if self.state is State.LOADING:
            self._configured.loaded()
        self._apply(self._scheduler.loaded(max(1, info.slots), self.ready_at))
        if self.state is State.READY and self._configured.latest is not self.config:
            self.unload()  # once what goes on here has finished
            self.load()

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
        return runtime_status(
            self._scheduler, self._facts, self._now(), threads=self._setup.cores.threads(self.key), key=self.key
        )
