"""The daemon as its upgrade sees it: what is under way, what is held back, and what is handed over."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from llmvisor.config.source import Look
from llmvisor.errors import LlmvisorError
from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.listeners import Listeners
from llmvisor.lock import DaemonLock
from llmvisor.log import LogHub
from llmvisor.notify import Notifier
from llmvisor.parts import Parts
from llmvisor.supervision.adoption import Adoption
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.supervisor import Supervisor
from llmvisor.upgrade.inherit import Inheritance
from llmvisor.upgrade.state import DaemonHandover, Envelope, seal
from llmvisor_runtimes.protocol import PROTOCOL_VERSION

_PASSING = {State.LOADING: "is loading", State.DRAINING: "drains", State.STOPPING: "is unloading"}


def adoption(inherited: Inheritance, supervisor: Supervisor) -> Adoption:
    """What gives an earlier run's workers to their models."""
    state = inherited.state
    version = PROTOCOL_VERSION if state is None else state.protocol_version
    histories = {} if state is None else state.histories
    return Adoption(
        inherited.runtimes, histories, fleet=supervisor, journal=supervisor.journal, protocol_version=version
    )


class House:
    """Belongs to the loop."""

    def __init__(
        self,
        parts: Parts,
        listeners: Listeners,
        lock: DaemonLock,
        *,
        logs: LogHub,
        notifier: Notifier,
        look: Callable[[], Look],
        reloads: Callable[[], bool],
        started: float,
        started_at: str,
    ) -> None:
        self.logs = logs
        self.notifier = notifier
        self.look = look
        """What the configuration's files look like; blocks on the disk."""
        self._parts = parts
        self._listeners = listeners
        self._lock = lock
        self._reloads = reloads
        self._started = started
        self._started_at = started_at
        self._jobs_paused = False

    @property
    def upgrade_timeout_seconds(self) -> float:
        return self._parts.config.server.upgrade_timeout

    # ------------------------------------------------------------------------------------------------ coming to rest

    async def hold(self) -> None:
        """Serve nothing new on TCP: it waits in the kernel. What runs goes on."""
        await self._listeners.pause_tcp()
        self._listeners.connections.hold(unix=False)

    def running(self) -> frozenset[object]:
        """What keeps it from coming to rest: each request, and each change of a model or of itself, by a mark of it."""
        marks = self._listeners.connections.running()
        return frozenset(marks) or frozenset({self.unrest()} - {None})

    def unrest(self) -> str | None:
        """What is under way that cannot be handed over, as `… is loading`; None for nothing."""
        requests = self._parts.supervisor.in_flight
        answers = self._listeners.connections.busy(unix=False)
        if (passing := self._passing()) is not None:
            return passing
        if requests or answers:
            return _under_way(requests, "request") if requests else _under_way(answers, "answer")
        if self._reloads():
            return "the configuration is being read again"
        if not self._parts.jobs.pausable and not self._jobs_paused:
            return "a job is under way"
        return None

    def _passing(self) -> str | None:
        """A model that is on its way to another worker, or to none."""
        supervisor = self._parts.supervisor
        if replaced := supervisor.replacing.names:
            return f"{replaced[0]} is being replaced"
        # A load that waits for memory, has no process yet, and no request that waits for it, holds up nothing.
        states = ((key, runtime.state) for key, runtime in supervisor.by_key().items() if runtime.has_process)
        passing = (f"{key} {_PASSING[state]}" for key, state in states if state in _PASSING)
        return next(passing, None)

    def end_requests(self, error: LlmvisorError) -> None:
        """End all requests with this error."""
        for runtime in self._parts.supervisor.by_key().values():
            runtime.end_requests(error)

    async def stop_the_rest(self) -> None:
        """Serve nothing at all any more; end those who follow logs and events, and what goes on by itself."""
        parts = self._parts
        await self._listeners.pause()
        self._listeners.connections.hold(unix=True)
        parts.events.end_subscriptions()
        self.logs.hub.end_subscriptions()
        self._jobs_paused = True
        await parts.jobs.pause()
        await parts.usage.flush()
        await parts.measurer.close()

    def last_unrest(self) -> str | None:
        """The same with all that the control socket serves, after `stop_the_rest`."""
        if (answers := self._listeners.connections.busy(unix=True)) > 0:
            return _under_way(answers, "answer")
        return self.unrest()

    async def release(self) -> None:
        """Serve everything again, as before."""
        if self._jobs_paused:
            self._jobs_paused = False
            self._parts.jobs.resume()
        self._listeners.connections.release()
        await self._listeners.resume()

    # ------------------------------------------------------------------------------------------------ handing over

    def hand_over_trial(self, upgrades: int) -> Envelope:
        """As `hand_over`, of the daemon in the middle of its work: for whoever only reads it."""
        return self._envelope(upgrades, [])

    def hand_over(self, upgrades: int) -> Envelope:
        """All that the next run needs; it stays open here."""
        return self._envelope(upgrades, self._listeners.connections.hand_over())

    def _envelope(self, upgrades: int, connections: list[ConnectionHandover]) -> Envelope:
        supervisor = self._parts.supervisor
        given = [each for runtime in supervisor.runtimes.values() if (each := runtime.hand_over()) is not None]
        held = supervisor.memory.held_bytes
        runtimes = [msgspec.structs.replace(each, reserved_bytes=held(each.model)) for each in given]
        histories = {name: runtime.history() for name, runtime in supervisor.runtimes.items()}
        state = DaemonHandover(
            runtimes,
            self._started,
            self._started_at,
            upgrades,
            arrivals=supervisor.residency.arrivals.counts(),
            histories={name: history for name, history in histories.items() if history},
        )
        return seal(
            state,
            pid=os.getpid(),
            lock_fd=self._lock.fd,
            socket_path=str(self._listeners.socket_path),
            listeners=self._listeners.hand_over(),
            connections=connections,
        )


def _under_way(count: int, what: str) -> str:
    return f"{count} {what} is under way" if count == 1 else f"{count} {what}s are under way"
