"""What happens to one model's requests and its worker, decided. Pure: events in, effects out.

Every decision about a model is made here, in one place and one order: whether a request waits, runs or is refused,
when a worker is started, unloaded or given up. The runtime actor (`actor.py`) feeds it events one by one and carries
out the effects; nothing else reads its fields to decide anything.

    submit ─▶ waiting ─▶ (loaded, a slot is free) ─▶ Grant ─▶ running ─▶ ended
                ▲ └────▶ Refuse: queue full, load failed, still loading, unavailable, shutting down
                └─────── Suspend: the worker is gone, the next one goes on
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from llmvisor import limits
from llmvisor.supervision.handover import RuntimeHandover
from llmvisor.supervision.scheduling.crashes import Crashes
from llmvisor.supervision.scheduling.effects import (
    Changed,
    Effect,
    Expire,
    Grant,
    RefusalKind,
    Refuse,
    SchedulerSettings,
    StartWorker,
    StopWorker,
    Suspend,
    Ticket,
)
from llmvisor.supervision.scheduling.idleness import Idleness
from llmvisor.supervision.scheduling.places import Places
from llmvisor.supervision.scheduling.poison import Crash, CrashKind, PoisonRule
from llmvisor.supervision.scheduling.restart import RestartLimits, RestartPolicy
from llmvisor.supervision.scheduling.state import Event, State, next_state


class Scheduler:
    """One model's requests, worker and deadlines."""

    def __init__(self, settings: SchedulerSettings, policy: RestartPolicy) -> None:
        self.settings = settings
        self.state = State.STOPPED
        self.restarts = 0
        self.error: str | None = None
        self.backoff_until: float | None = None
        self.idle = Idleness()
        """When the model is unloaded for want of requests."""
        self._poison = PoisonRule(cleared_tokens=limits.poison_cleared_tokens)
        self._places = Places(self._poison)
        self._crashes = Crashes(policy, self._poison)
        self._load_began = 0.0
        self._ready_since: float | None = None
        self._load_again = False
        self._yields = False  # it drains for others, who may not need that any more before it has
        self._doomed: tuple[str, bool, CrashKind] | None = None
        self._closing = False
        self._effects: list[Effect] = []

    # ------------------------------------------------------------------------------------------------ what is asked

    @property
    def queued(self) -> int:
        return self._places.waiting

    @property
    def running(self) -> int:
        return len(self._places.running)

    @property
    def slots_busy(self) -> int:
        return self._places.busy

    @property
    def on_probation(self) -> int | None:
        """The request under suspicion that runs: `progressed` wants to know what it brings."""
        return self._places.on_probation

    @property
    def load_is_wanted(self) -> bool:
        """Whether a request or the configuration waits for the model to be loaded."""
        return self.queued > 0 or self._load_again

    def next_wake(self) -> float | None:
        """When `wake` has something to do, if nothing happens before."""
        times = (self.backoff_until, self.idle.deadline, self._places.next_deadline())
        deadlines = [time for time in times if time is not None]
        if self.state is not State.READY and (oldest := self._places.oldest()) is not None:
            deadlines.append(self._load_deadline(oldest))
        return min(deadlines, default=None)

    def place(self, ticket_id: int) -> tuple[int, int] | None:
        """Where a request stands among those that wait for a place, and how many these are; None where it does not."""
        return self._places.place(ticket_id)

    # ------------------------------------------------------------------------------------------------ events: requests

    def submit(self, ticket: Ticket) -> list[Effect]:
        """A request has come."""
        if self._closing:
            self._refuse(ticket, "shutting_down", "the server is shutting down")
        elif self.state is State.FAILED:
            self._refuse(ticket, "model_unavailable", self.error or "the model is unavailable")
        elif ticket.deadline is not None and ticket.deadline <= ticket.arrived:
            self._refuse(ticket, "timeout", "the request's time was over before it began")
        elif self._serves() and self._places.fits_at_once(ticket):
            self._places.run_at_once(ticket)
            self._granted(ticket)
            self.idle.used()
        # Before a worker serves, those that will run at once when it does wait as well.
        elif self.queued >= self.settings.queue_limit + (0 if self._serves() else self.settings.parallel):
            loading_since = None if self.state is State.READY else self._load_began
            seconds = self._places.come_back_seconds(ticket.arrived, self.settings.parallel, loading_since)
            self._refuse(ticket, "queue_full", f"{self.queued} requests wait for this model already", seconds)
        else:
            self._places.put(ticket)
            self._want_load(ticket.arrived)
            self._settle(ticket.arrived)
        return self._take()

    def ended(self, ticket_id: int, now: float) -> list[Effect]:
        """A request that ran has ended, whichever way."""
        if self._places.end(ticket_id, now):
            self._crashes.served()
            self._settle(now)
        return self._take()

    def progressed(self, ticket_id: int, tokens: int, now: float) -> list[Effect]:
        """A suspect has brought so many tokens since it runs: enough of them clear it."""
        if self._poison.progressed(ticket_id, tokens):
            self._settle(now)
        return self._take()

    def withdrawn(self, ticket_id: int, now: float) -> list[Effect]:
        """A request that waits is wanted no more."""
        self._places.withdraw(ticket_id)
        self._settle(now)
        return self._take()

    # ------------------------------------------------------------------------------------------------ events: worker

    def loaded(self, slots: int, now: float) -> list[Effect]:
        """The worker has loaded the model and decodes so many sequences together."""
        self._move(Event.LOADED)
        if self.state is State.READY:
            self._ready_since = now
            self._places.opened(slots, now - self._load_began)
            self._crashes.loaded()
            self.error = None
            self._load_again = False
            self._settle(now)
        return self._take()

    def taken_over(self, given: RuntimeHandover) -> list[Effect]:
        """From nothing: a worker that an earlier run of the daemon has loaded serves."""
        self._move(Event.LOAD_WANTED)
        self._load_began = given.ready_at - given.info.load_seconds
        self.idle.keep_alive_seconds, self.restarts = given.keep_alive_seconds, given.restarts
        effects = self.loaded(max(1, given.info.slots), given.ready_at)
        self.idle.deadline = given.idle_deadline
        return effects

    def denied(self, reason: str, now: float) -> list[Effect]:
        """There is no room for the model; no worker is there."""
        if self.state is State.STOPPING:
            return self.exited(reason, now)  # who waits may be served by what comes next
        self._move(Event.DENIED)
        self.error = reason
        # Who asks again gets another try; without one it would be denied over and over.
        self._load_again = False
        self._refuse_waiting("insufficient_memory", reason, limits.memory_retry_seconds)
        self._settle(now)
        return self._take()

    def broken(self, reason: str, *, permanent: bool = False) -> list[Effect]:
        """The worker cannot load the model, or breaks the protocol. It is killed, and its exit decides what follows."""
        return self._doom(reason, permanent=permanent, rung="kill")

    def sacrificed(self, reason: str) -> list[Effect]:
        """The worker has to go at once for a reason that is none of its own; its requests go on in the next one."""
        return self._doom(reason, permanent=False, rung="kill", kind="killed")

    def hung(self, reason: str, *, kind: CrashKind = "fault") -> list[Effect]:
        """The worker makes no progress."""
        return self._doom(reason, permanent=False, rung="abort", kind=kind)

    def exited(self, reason: str, now: float, *, permanent: bool = False, crash: Crash | None = None) -> list[Effect]:
        """The worker is gone (or could not be started)."""
        crash = crash or Crash()
        if self._doomed is not None:
            reason, permanent, kind = self._doomed
            self._doomed = None
            crash = Crash(kind, crash.progressed)
        inside = self._places.closed()
        if self.state is State.STOPPING:
            self._move(Event.EXITED)
            self._refuse_all(inside.values(), "unloaded", "it was unloaded by force", limits.retry_after_seconds)
        elif self.state is State.LOADING:
            self._load_crashed(reason, now, permanent=permanent, crash=crash)
        else:
            self._crashed(inside, reason, now, permanent=permanent, crash=crash)
        self._ready_since = None
        self.idle.gone()
        self._settle(now)
        return self._take()

    # ------------------------------------------------------------------------------------------------ events: people

    def load_wanted(self, now: float) -> list[Effect]:
        """Somebody wants the model loaded without a request (preload)."""
        self._load_again = self.state not in {State.READY, State.FAILED}
        self._want_load(now)
        return self._take()

    def load_unwanted(self, now: float) -> list[Effect]:
        """Somebody who waited for the load has gone: it ends, unless a request or the configuration wants it too."""
        if self.state is State.LOADING and not self.queued and not self._load_again:
            return self.unload_wanted(now)
        return self._take()

    def unload_wanted(self, now: float, *, force: bool = False, yields: bool = False) -> list[Effect]:
        """Unload: what runs finishes first, unless forced. What waits is served by the next worker."""
        self._load_again, self._yields, self.backoff_until = False, yields, None
        old = self.state
        self._move(Event.KILL_WANTED if force else Event.UNLOAD_WANTED)
        if self.state is State.STOPPING and (force or old is State.LOADING):
            self._effects.append(StopWorker("kill", "unloaded by force" if force else "unloaded while loading"))
        self._settle(now)
        return self._take()

    def stay_wanted(self, now: float) -> list[Effect]:
        """What it was to make room for needs none any more: one that yields still serves on."""
        if self._yields and self.state is State.DRAINING and not self._closing and self._doomed is None:
            self._load_again = self._yields = False
            self._move(Event.STAY_WANTED)
            self._settle(now)
        return self._take()

    def reset(self, now: float) -> list[Effect]:
        """Forget earlier crashes."""
        self._crashes.reset()
        self.error = self.backoff_until = None
        self._move(Event.RESET)
        self._settle(now)
        return self._take()

    def configure(self, settings: SchedulerSettings, restarts: RestartLimits, now: float) -> list[Effect]:
        """Other limits hold from now on."""
        self.settings = settings
        self._crashes.configure(restarts)
        self.idle.used()
        self._settle(now)
        return self._take()

    def shutdown(self, now: float) -> list[Effect]:
        """The daemon ends: what has begun may finish, in another worker where its own ends; nothing else starts."""
        self._closing = True
        self._refuse_all(self._places.withdraw_unbegun(), "shutting_down", "the server is shutting down")
        self._settle(now)
        return self._take()

    def wake(self, now: float) -> list[Effect]:
        """Time has passed: act on every deadline that is over."""
        if self.backoff_until is not None and now >= self.backoff_until:
            self.backoff_until = None
            self._move(Event.BACKOFF_ELAPSED)
        if self.idle.is_over(now, self.settings.idle_timeout_seconds):
            self._move(Event.UNLOAD_WANTED)
        self._expire(now)
        self._settle(now)
        return self._take()

    # ------------------------------------------------------------------------------------------------ how

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _move(self, event: Event) -> None:
        old, new = self.state, next_state(self.state, event)
        if new is not old:
            self.state = new
            self._effects.append(Changed(old, new))

    def _want_load(self, now: float) -> None:
        old = self.state
        self._move(Event.LOAD_WANTED)
        if old is State.STOPPED:
            self._load_began = now
            self._effects.append(StartWorker())

    def _settle(self, now: float) -> None:
        """Grant what fits, in order, go on from a state that is no place to rest in, and watch for idleness."""
        if self.state is State.STOPPED and (self.queued or (self._load_again and not self._closing)):
            self._want_load(now)
        if self._serves():
            for ticket in self._places.grant(now):
                self._granted(ticket)
        if self._closing and not self.queued:
            self._close()
        if self.state is State.DRAINING and not self.running:
            self._move(Event.DRAINED)
            self._effects.append(StopWorker("close", "unloaded"))
        if self._serves() and not self.running and not self.queued:
            self.idle.rests(now, self.settings.idle_timeout_seconds)
        else:
            self.idle.used()

    def _close(self) -> None:
        """The daemon ends, and nothing waits for a worker any more."""
        if self.state is State.LOADING:
            self._effects.append(StopWorker("kill", "shutting down"))
        self._move(Event.SHUTDOWN)
        self.backoff_until = None

    def _expire(self, now: float) -> None:
        """End what is wanted no more, and what has waited too long for the model to load."""
        waiting, running = self._places.overdue(now)
        for ticket in waiting:
            self._refuse(ticket, "timeout", "the request's time was over before its turn came")
        self._effects += [Expire(ticket_id) for ticket_id in running]
        while self.state is not State.READY and (oldest := self._places.oldest()) is not None:
            if now < self._load_deadline(oldest):
                break
            self._places.withdraw(oldest.id)
            waited = f"the model is still loading after {self.settings.load_timeout_seconds:g} s"
            self._refuse(oldest, "model_loading", waited, limits.loading_retry_seconds)

    def _serves(self) -> bool:
        return self.state is State.READY and self._doomed is None

    def _granted(self, ticket: Ticket) -> None:
        if ticket.keep_alive_seconds is not None:
            self.idle.keep_alive_seconds = ticket.keep_alive_seconds
        self._effects.append(Grant(ticket.id))

    def _load_deadline(self, ticket: Ticket) -> float:
        return max(ticket.arrived, self._load_began, self._crashes.at) + self.settings.load_timeout_seconds

    def _doom(
        self, reason: str, *, permanent: bool, rung: Literal["abort", "kill"], kind: CrashKind = "fault"
    ) -> list[Effect]:
        """The worker has to go and counts as crashed; it gets no more requests until it is gone."""
        if self._doomed is None and self.state in {State.LOADING, State.READY, State.DRAINING}:
            self._doomed = (reason, permanent, kind)
            self.idle.used()
            self._effects.append(StopWorker(rung, reason))
        return self._take()

    def _load_crashed(self, reason: str, now: float, *, permanent: bool, crash: Crash) -> None:
        """The worker ended before it served. What a worker had before waits on; others where that tells nothing."""
        self.error = reason
        delay = self._crashes.at_load(now, crash.kind, permanent=permanent)
        if delay is None:
            self._refuse_all(self._places.withdraw_all(), "model_load_failed", reason)
        elif not self._crashes.load_says_nothing:
            self._refuse_all(self._places.withdraw_unbegun(), "model_load_failed", reason)
        self._restart_or_give_up(now, delay, load_again=self.settings.keep_loaded)

    def _crashed(self, inside: dict[int, Ticket], reason: str, now: float, *, permanent: bool, crash: Crash) -> None:
        """The worker ended while it served: what it had goes on in the next one."""
        self.error = reason
        served_seconds = 0.0 if self._ready_since is None else now - self._ready_since
        verdict = self._crashes.serving(now, inside, crash, served_seconds=served_seconds, permanent=permanent)
        for ticket in inside.values():
            if ticket.id in verdict.poison:
                self._refuse(ticket, "poison_request", f"it has ended its worker again: {reason}")
            elif verdict.delay_seconds is None or not ticket.resume:
                self._refuse(ticket, "runtime_crashed", reason, limits.retry_after_seconds)
            else:
                self._places.put_back(ticket)
                self._effects.append(Suspend(ticket.id, reason))
        self._restart_or_give_up(now, verdict.delay_seconds, load_again=True)

    def _restart_or_give_up(self, now: float, delay_seconds: float | None, *, load_again: bool) -> None:
        self.backoff_until = None
        self._load_again = False
        if delay_seconds is None:
            self._move(Event.GAVE_UP)
            self._refuse_waiting("model_unavailable", self.error or "")
            return
        self.restarts += 1
        self._move(Event.CRASHED)
        if self.state is State.BACKOFF:
            self.backoff_until, self._load_again = now + delay_seconds, load_again

    def _refuse(self, ticket: Ticket, kind: RefusalKind, reason: str, retry_seconds: float | None = None) -> None:
        self._poison.forget(ticket.id)
        self._effects.append(Refuse(ticket.id, kind, reason, retry_seconds))

    def _refuse_waiting(self, kind: RefusalKind, reason: str, retry_seconds: float | None = None) -> None:
        self._refuse_all(self._places.withdraw_all(), kind, reason, retry_seconds)

    def _refuse_all(
        self, tickets: Iterable[Ticket], kind: RefusalKind, reason: str, retry_seconds: float | None = None
    ) -> None:
        for ticket in tickets:
            self._refuse(ticket, kind, reason, retry_seconds)
