"""Gives models that load their memory, one after another, and asks others to make room: what `evict.py` decides.

Nothing here changes a model's state: who is to go is asked to unload, as by a person, and its memory counts as free
once its process is gone. A load that waits holds nothing; it ends with the memory, with a refusal, or because its
runtime has been told to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import Memory, ModelConfig
from llmvisor.log import get_logger
from llmvisor.supervision.alarm import Alarm
from llmvisor.supervision.cpu import exchange
from llmvisor.supervision.memory.arrivals import Arrivals
from llmvisor.supervision.memory.budget import MemoryBudget, size_text
from llmvisor.supervision.memory.evict import Decision, Load, Resident, Room, decide
from llmvisor.supervision.scheduling.state import State

_log = get_logger(__name__)


class Occupant(Protocol):
    """A runtime, as far as its memory is concerned."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def state(self) -> State: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def load_is_wanted(self) -> bool:
        """Whether a request or the configuration waits for the model to be loaded."""
        ...

    @property
    def has_begun_requests(self) -> bool:
        """Whether requests wait for it that a worker had before."""
        ...

    @property
    def returns(self) -> bool:
        """Whether it was loaded until its configuration changed, and has not been since."""
        ...

    @property
    def ready_at(self) -> float:
        """When it was last loaded."""
        ...

    @property
    def active_at(self) -> float: ...

    def waits_for_memory(self) -> None:
        """To be shown."""
        ...

    def unload(self) -> None: ...

    def make_way(self) -> None:
        """Unload once what runs has finished, unless told to `stay` before."""
        ...

    def stay(self) -> None: ...

    def abandon_load(self) -> None: ...


class _Waiting:
    """A load without its memory."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.comes = asyncio.Event()
        """Its memory is there or on its way, or it gets none."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Admission:
    """`occupants` are all runtimes by the key that their memory is held under."""

    def __init__(
        self,
        budget: MemoryBudget,
        *,
        occupants: Callable[[], Mapping[str, Occupant]],
        reload_seconds: Callable[[str], float],
        settings: Callable[[], Memory],
        arrivals: Arrivals,
        clock: Clock,
        measure: Callable[[], None] = lambda: None,
    ) -> None:
        """`measure` tells the budget what each worker takes at the moment."""
        self._measure = measure
        self._budget = budget
        self._occupants = occupants
        self._reload_seconds = reload_seconds
        self._settings = settings
        self._arrivals = arrivals
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._yielding: set[str] = set()
        """Who makes way, as far as it has not gone."""
        self._come_back_until = 0.0
        """Until when somebody may come back who waited too long for those."""
        self._admitted_at: dict[str, float] = {}
        self._alarm = Alarm(clock, self.changed)
        self._looks_soon = False

    @property
    def waiting(self) -> list[str]:
        """Who waits for memory, in order."""
        return [waiting.load.key for waiting in self._waiting]

    async def admit(self, key: str, needed_bytes: int | None, least_bytes: int | None = None) -> asyncio.Future[None]:
        """Wait until this memory is on its way to a model that loads; None needs none that anybody knows of.
        `least_bytes` of it do where there is no more.

        What it gives is done once the memory is set aside, or fails with `InsufficientMemory`; who cancels it waits no
        more. Both end without memory once the runtime has been told to stop. Raises `InsufficientMemory`.
        """
        if needed_bytes is None:
            return _at_once()
        now = self._clock.monotonic()
        deadline, machine_deadline = now + self._settings().wait_timeout, now + limits.machine_memory_wait_seconds
        waiting = _Waiting(Load(key, needed_bytes, now, deadline, machine_deadline, least_bytes))
        waiting.done.add_done_callback(lambda _: self._forget(waiting))
        self._waiting.append(waiting)
        try:
            self._look()
            if not waiting.done.done() and (occupant := self._occupants().get(key)) is not None:
                occupant.waits_for_memory()
            await waiting.comes.wait()
        except BaseException:
            waiting.done.cancel()
            raise
        if waiting.done.done():
            waiting.done.result()
        return waiting.done

    def exchange(self, mine: str, other: str) -> None:
        """Two runtimes have changed their keys."""
        exchange(self._admitted_at, mine, other)
        keys = {mine: other, other: mine}
        self._yielding = {keys.get(key, key) for key in self._yielding}
        for waiting in self._waiting:
            waiting.load = msgspec.structs.replace(waiting.load, key=keys.get(waiting.load.key, waiting.load.key))

    def changed(self) -> None:
        """Something that matters is otherwise now: look again, soon."""
        if (self._waiting or self._yielding) and not self._looks_soon:
            self._looks_soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def residents(self, now: float) -> list[Resident]:
        """Who has memory."""
        occupants = self._occupants()
        return [self._resident(key, occupants.get(key), now) for key in self._budget.holders()]

    def _look(self) -> None:
        self._looks_soon = False
        self._waiting = [waiting for waiting in self._waiting if not waiting.done.done()]  # given up a moment ago
        occupants = self._occupants()
        for waiting in self._waiting[:]:
            if (occupant := occupants.get(waiting.load.key)) is not None:
                waiting.load = _as_wanted(waiting.load, occupant)
                self._drop_unwanted(waiting, occupant)
        self._measure()
        now = self._clock.monotonic()
        # Who waits may have a process already, which is a part of what it needs.
        keys = self.waiting
        free_bytes = self._budget.free_bytes(without=keys)
        decision = decide(
            [waiting.load for waiting in self._waiting],
            [resident for resident in self.residents(now) if resident.key not in keys],
            Room(free_bytes, self._budget.limit_bytes, self._budget.attainable_bytes()),
            now=now,
            min_residency_seconds=self._settings().min_residency,
        )
        self._carry_out(decision, occupants, now)

    def _carry_out(self, decision: Decision, occupants: Mapping[str, Occupant], now: float) -> None:
        by_key = {waiting.load.key: waiting for waiting in self._waiting}
        for key in decision.admit:
            free_bytes = self._budget.free_bytes(without=self.waiting)
            self._budget.reserve(key, max(0, min(by_key[key].load.needed_bytes, free_bytes)))
            self._admitted_at[key] = now
            self._end(by_key[key], now)
        for refusal in decision.refuse:
            waiting = by_key[refusal.key]
            waited = None if refusal.never else now - waiting.load.since
            if waited is not None and waiting.load.asked_for:
                self._come_back_until = now + limits.memory_come_back_seconds
            needed, users = waiting.load.needed_bytes, _users(occupants, self._budget.holders())
            error = self._budget.refusal(needed, waited_seconds=waited, users=users)
            self._forget(waiting)
            if not waiting.done.done():
                waiting.done.set_exception(error)
            waiting.comes.set()
        for key in decision.coming:
            by_key[key].comes.set()
        wanted_by = ", ".join(self.waiting)
        for key in decision.evict:
            size = size_text(self._budget.held_bytes(key))
            _log.info("evicted, to make room", model=key, memory=size, wanted_by=wanted_by)
            occupants[key].unload()
        for key in decision.yield_:
            size = size_text(self._budget.held_bytes(key))
            _log.info("yields: what runs finishes, to make room", model=key, memory=size, wanted_by=wanted_by)
            occupants[key].make_way()
        self._let_stay([] if now < self._come_back_until else decision.stay, occupants)
        self._yielding.update(key for key in decision.yield_ if occupants[key].state is State.DRAINING)
        # Of what other programs give back nobody tells.
        looks_on = self._waiting or self._yielding
        self._alarm.set(decision.wake_at, now + limits.memory_look_seconds if looks_on else None)

    def _let_stay(self, keys: list[str], occupants: Mapping[str, Occupant]) -> None:
        for key in self._yielding.intersection(keys):
            _log.info("stays: nobody waits for its memory any more", model=key)
            occupants[key].stay()
        self._yielding = {key for key in self._yielding if key in occupants and occupants[key].state is State.DRAINING}

    def _drop_unwanted(self, waiting: _Waiting, occupant: Occupant) -> None:
        if occupant.state is State.LOADING and not occupant.load_is_wanted:
            occupant.abandon_load()
        if occupant.state is State.STOPPING:
            self._end(waiting, self._clock.monotonic())

    def _end(self, waiting: _Waiting, now: float) -> None:
        self._forget(waiting)
        if not waiting.done.done():
            waiting.done.set_result(None)
        waiting.comes.set()
        waited = now - waiting.load.since
        if waited > 0:
            _log.debug("waited for memory", model=waiting.load.key, seconds=round(waited, 2))

    def _forget(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self.changed()
            if not self._waiting and not self._yielding:
                self._alarm.set(None)

    def _load_took(self, key: str, ready_at: float) -> float | None:
        """From the memory that it got to its first request, with all that an engine takes to start."""
        admitted_at = self._admitted_at.get(key)
        return ready_at - admitted_at if admitted_at is not None and ready_at > admitted_at else None

    def _resident(self, key: str, occupant: Occupant | None, now: float) -> Resident:
        held = self._budget.held_bytes(key)
        if occupant is None or occupant.state is State.LOADING:
            # One that nobody knows is about to be: nothing can be asked of it yet.
            return Resident(key, held, "loading", pinned=occupant is not None and occupant.config.pinned)
        if occupant.state is not State.READY:
            return Resident(key, held, "draining" if occupant.state is State.DRAINING else "leaving")
        return Resident(
            key,
            held,
            "busy" if occupant.in_flight else "idle",
            pinned=occupant.config.pinned,
            ready_at=occupant.ready_at,
            reload_seconds=self._load_took(key, occupant.ready_at) or self._reload_seconds(key),
            uses_per_second=self._arrivals.per_second(key, now),
            used_at=occupant.active_at,
        )


def _at_once() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def _as_wanted(load: Load, occupant: Occupant) -> Load:
    """With who waits for it at the moment. What has begun is not ended soon because others have the memory."""
    soon = None if occupant.has_begun_requests else load.machine_deadline
    asked_for, returns = occupant.in_flight > 0, occupant.returns
    return msgspec.structs.replace(load, asked_for=asked_for, returns=returns, machine_deadline=soon)


def _users(occupants: Mapping[str, Occupant], keys: Iterable[str]) -> str:
    """Who of these is in use, for people."""
    busy = {key: occupants[key].in_flight for key in keys if key in occupants and occupants[key].in_flight}
    return ", ".join(
        f"{key} has {count} {'request' if count == 1 else 'requests'} in flight" for key, count in busy.items()
    )
