"""What happens to one model's requests and its worker, decided. Pure: events in, effects out.

Every decision about a model is made here, in one place and one order: whether a request waits, runs or is refused,
when a worker is started, unloaded or given up. The runtime actor (`runtime.py`) feeds it events one by one and carries
out the effects; nothing else reads its fields to decide anything.

    submit ─▶ waiting ─▶ (loaded, a slot is free) ─▶ Grant ─▶ running ─▶ ended
                  └────▶ Refuse: queue full, load failed, still loading, unavailable, shutting down
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmvisor import limits
from llmvisor.supervision.effects import Changed, Effect, Grant, RefusalKind, Refuse, StartWorker, StopWorker, Ticket
from llmvisor.supervision.fair_queue import FairQueue
from llmvisor.supervision.restart import RestartPolicy
from llmvisor.supervision.state import Event, State, next_state


class SchedulerSettings(msgspec.Struct, frozen=True):
    """What the configuration says of one model's scheduling, in seconds and requests."""

    queue_limit: int
    """Requests that wait beside those that run."""
    parallel: int
    """Sequences that are going to run together, where no worker has said yet."""
    load_timeout_seconds: float
    idle_timeout_seconds: float
    """0 = never unloaded for idleness."""
    keep_loaded: bool = False
    """Preloaded or pinned: started again after a crash although nobody waits."""


class Scheduler:
    """One model's requests, worker and deadlines."""

    def __init__(self, settings: SchedulerSettings, policy: RestartPolicy) -> None:
        self.settings = settings
        self.state = State.STOPPED
        self.restarts = 0
        self.error: str | None = None
        self.backoff_until: float | None = None
        self.idle_deadline: float | None = None
        self._policy = policy
        self._waiting = FairQueue()
        self._running: dict[int, int] = {}
        self._slots = 0
        self._keep_alive_seconds: float | None = None
        self._load_began = 0.0
        self._ready_since: float | None = None
        self._load_again = False
        self._doomed: tuple[str, bool] | None = None
        self._closing = False
        self._effects: list[Effect] = []

    # ------------------------------------------------------------------------------------------------ what is asked

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def slots_busy(self) -> int:
        return sum(self._running.values())

    def next_wake(self) -> float | None:
        """When `wake` has something to do, if nothing happens before."""
        deadlines = [d for d in (self.backoff_until, self.idle_deadline) if d is not None]
        if self._waiting and self.state is not State.READY:
            deadlines.append(min(map(self._load_deadline, self._waiting)))
        return min(deadlines, default=None)

    # ------------------------------------------------------------------------------------------------ events: requests

    def submit(self, ticket: Ticket) -> list[Effect]:
        """A request has come."""
        if self._closing:
            self._refuse(ticket, "shutting_down", "the server is shutting down")
        elif self.state is State.FAILED:
            self._refuse(ticket, "model_unavailable", self.error or "the model is unavailable")
        elif self._queue_is_full() and not self._fits_at_once(ticket):
            self._refuse(ticket, "queue_full", f"{len(self._waiting)} requests wait for this model already")
        else:
            self._waiting.put(ticket)
            self._want_load(ticket.arrived)
            self._pump(ticket.arrived)
        return self._take()

    def ended(self, ticket_id: int, now: float) -> list[Effect]:
        """A request that ran has ended, whichever way."""
        if self._running.pop(ticket_id, None) is not None:
            self._pump(now)
        return self._take()

    def withdrawn(self, ticket_id: int, now: float) -> list[Effect]:
        """A request that waits is wanted no more."""
        self._waiting.take(ticket_id)
        self._pump(now)
        return self._take()

    # ------------------------------------------------------------------------------------------------ events: worker

    def loaded(self, slots: int, now: float) -> list[Effect]:
        """The worker has loaded the model and decodes so many sequences together."""
        self._move(Event.LOADED)
        if self.state is State.READY:
            self._slots = slots
            self._ready_since = now
            self.error = None
            self._load_again = False
            self._pump(now)
        return self._take()

    def denied(self, reason: str, now: float) -> list[Effect]:
        """There is no room for the model; no worker was started."""
        if self.state is State.STOPPING:
            return self.exited(reason, now)  # who waits may be served by what comes next
        self._move(Event.DENIED)
        self.error = reason
        # Who asks again gets another try; without one it would be denied over and over.
        self._load_again = False
        self._refuse_waiting("insufficient_memory", reason, retry_after_seconds=limits.memory_retry_seconds)
        self._settle(now)
        return self._take()

    def broken(self, reason: str, *, permanent: bool = False) -> list[Effect]:
        """The worker cannot load the model, or breaks the protocol. It is killed, and its exit decides what follows."""
        return self._doom(reason, permanent=permanent, rung="kill")

    def hung(self, reason: str) -> list[Effect]:
        """The worker makes no progress."""
        return self._doom(reason, permanent=False, rung="abort")

    def exited(self, reason: str, now: float, *, permanent: bool = False) -> list[Effect]:
        """The worker is gone (or could not be started)."""
        if self._doomed is not None:
            reason, permanent = self._doomed
            self._doomed = None
        if self.state is State.STOPPING:
            self._move(Event.EXITED)
        else:
            self._crashed(reason, now, permanent=permanent)
        self._slots = 0
        self._ready_since = None
        self._keep_alive_seconds = None
        self.idle_deadline = None
        for ticket_id in self._running:
            self._effects.append(
                Refuse(ticket_id, "runtime_crashed", reason, retry_after_seconds=limits.retry_after_seconds)
            )
        self._running.clear()
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
        if self.state is State.LOADING and not self._waiting and not self._load_again:
            return self.unload_wanted(now)
        return self._take()

    def unload_wanted(self, now: float, *, force: bool = False) -> list[Effect]:
        """Unload: what runs finishes first, unless forced. What waits is served by the next worker."""
        self._load_again = False
        self.backoff_until = None
        old = self.state
        self._move(Event.KILL_WANTED if force else Event.UNLOAD_WANTED)
        if self.state is State.STOPPING and (force or old is State.LOADING):
            self._effects.append(StopWorker("kill", "unloaded by force" if force else "unloaded while loading"))
        self._settle(now)
        return self._take()

    def reset(self, now: float) -> list[Effect]:
        """Forget earlier crashes."""
        self._policy.reset()
        self.error = None
        self.backoff_until = None
        self._move(Event.RESET)
        self._settle(now)
        return self._take()

    def shutdown(self, now: float) -> list[Effect]:
        """The daemon ends: nothing new starts, what runs may finish."""
        self._closing = True
        self._load_again = False
        self._refuse_waiting("shutting_down", "the server is shutting down")
        old = self.state
        self._move(Event.SHUTDOWN)
        if old is State.LOADING:
            self._effects.append(StopWorker("kill", "shutting down"))
        self.backoff_until = None
        self._settle(now)
        return self._take()

    def wake(self, now: float) -> list[Effect]:
        """Time has passed: act on every deadline that is over."""
        if self.backoff_until is not None and now >= self.backoff_until:
            self.backoff_until = None
            self._move(Event.BACKOFF_ELAPSED)
        if self.idle_deadline is not None and now >= self.idle_deadline:
            if now - self.idle_deadline > limits.suspend_gap_seconds:
                # The machine slept, and that was no idleness of the model's.
                self._arm_idle(now)
            else:
                self.idle_deadline = None
                self._move(Event.UNLOAD_WANTED)
        if self.state is not State.READY:
            for ticket in [t for t in self._waiting if now >= self._load_deadline(t)]:
                self._waiting.take(ticket.id)
                waited = f"the model is still loading after {self.settings.load_timeout_seconds:g} s"
                self._refuse(ticket, "model_loading", waited, retry_after_seconds=limits.loading_retry_seconds)
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
        """Go on from a state that is no place to rest in."""
        if self.state is State.DRAINING and not self._running:
            self._move(Event.DRAINED)
            self._effects.append(StopWorker("close", "unloaded"))
        if self._closing and self.state in {State.STOPPED, State.FAILED}:
            self._move(Event.SHUTDOWN)
        elif self.state is State.STOPPED and (self._waiting or self._load_again):
            self._want_load(now)
        self._pump(now)

    def _pump(self, now: float) -> None:
        """Grant what fits, in order, and watch for idleness."""
        if self.state is State.DRAINING and not self._running:
            self._settle(now)
        if not self._serves():
            self.idle_deadline = None
            return
        for ticket in [ticket for ticket in self._waiting if ticket.weight == 0]:
            self._grant(ticket)
        while (ticket := self._waiting.first()) is not None and self._fits(ticket):
            self._grant(ticket)
        if self._running or self._waiting:
            self.idle_deadline = None
        elif self.idle_deadline is None:
            self._arm_idle(now)

    def _grant(self, ticket: Ticket) -> None:
        self._waiting.take(ticket.id)
        self._running[ticket.id] = min(ticket.weight, self._slots)
        if ticket.keep_alive_seconds is not None:
            self._keep_alive_seconds = ticket.keep_alive_seconds
        self._effects.append(Grant(ticket.id))

    def _serves(self) -> bool:
        return self.state is State.READY and self._doomed is None

    def _fits(self, ticket: Ticket) -> bool:
        busy = self.slots_busy
        return busy == 0 or busy + min(ticket.weight, self._slots) <= self._slots

    def _fits_at_once(self, ticket: Ticket) -> bool:
        return self._serves() and (ticket.weight == 0 or (not self._waiting and self._fits(ticket)))

    def _queue_is_full(self) -> bool:
        """Before a worker serves, those that will run at once when it does wait here as well."""
        room = self.settings.queue_limit + (0 if self._serves() else self.settings.parallel)
        return len(self._waiting) >= room

    def _arm_idle(self, now: float) -> None:
        """A keep-alive of 0 unloads at once; a negative one, or an idle timeout of 0, never."""
        if self._keep_alive_seconds is not None:
            seconds = self._keep_alive_seconds
            self.idle_deadline = now + seconds if seconds >= 0 else None
        else:
            seconds = self.settings.idle_timeout_seconds
            self.idle_deadline = now + seconds if seconds > 0 else None

    def _load_deadline(self, ticket: Ticket) -> float:
        return max(ticket.arrived, self._load_began) + self.settings.load_timeout_seconds

    def _doom(self, reason: str, *, permanent: bool, rung: Literal["abort", "kill"]) -> list[Effect]:
        """The worker has to go and counts as crashed; it gets no more requests until it is gone."""
        if self._doomed is None and self.state in {State.LOADING, State.READY, State.DRAINING}:
            self._doomed = (reason, permanent)
            self.idle_deadline = None
            self._effects.append(StopWorker(rung, reason))
        return self._take()

    def _crashed(self, reason: str, now: float, *, permanent: bool) -> None:
        at_load = self.state is State.LOADING
        self.error = reason
        served_seconds = 0.0 if self._ready_since is None else now - self._ready_since
        delay = None if permanent else self._policy.crashed(now, served_seconds=served_seconds)
        if at_load:
            self._refuse_waiting("model_load_failed", reason)
        if delay is None:
            self._move(Event.GAVE_UP)
            self._refuse_waiting("model_unavailable", reason)
            self._load_again = False
            return
        self.restarts += 1
        self._load_again = self.settings.keep_loaded or not at_load
        self._move(Event.CRASHED)
        if self.state is State.BACKOFF:
            self.backoff_until = now + delay
        else:
            self._load_again = False

    def _refuse(
        self, ticket: Ticket, kind: RefusalKind, reason: str, *, retry_after_seconds: float | None = None
    ) -> None:
        self._effects.append(Refuse(ticket.id, kind, reason, retry_after_seconds))

    def _refuse_waiting(self, kind: RefusalKind, reason: str, *, retry_after_seconds: float | None = None) -> None:
        for ticket in self._waiting.take_all():
            self._refuse(ticket, kind, reason, retry_after_seconds=retry_after_seconds)
