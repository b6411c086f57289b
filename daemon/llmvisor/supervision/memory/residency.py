"""Everything that decides which models are in memory, put together: for the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import Memory, ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.log import get_logger
from llmvisor.models.catalogue import Catalogue
from llmvisor.supervision.cpu import exchange
from llmvisor.supervision.memory.admission import Admission, Occupant
from llmvisor.supervision.memory.arrivals import Arrivals
from llmvisor.supervision.memory.budget import MemoryBudget, size_text
from llmvisor.supervision.memory.estimates import LoadEstimates
from llmvisor.supervision.memory.machine_memory import MachineMemory, process_memory
from llmvisor.supervision.memory.measured import LoadHistory
from llmvisor.supervision.memory.pressure import PressureRule, Relief, Worker
from llmvisor.supervision.scheduling.state import HAS_WORKER, State

_log = get_logger(__name__)


class Inhabitant(Occupant, Protocol):
    """A runtime whose worker can be asked for memory, or ended for it."""

    def trim(self) -> None: ...

    def sacrifice(self, reason: str) -> None: ...


class Residency:
    """`inhabitants` are all runtimes, by the keys under which their memory is held; `models` how each is to run."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        catalogue: Catalogue,
        *,
        machine: MachineMemory,
        inhabitants: Callable[[], Mapping[str, Inhabitant]],
        settings: Callable[[], Memory],
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._machine = machine
        self._inhabitants = inhabitants
        self._settings = settings
        self._clock = clock
        self.budget = MemoryBudget(settings().limit_bytes(machine.total()), available=self._available)
        self.history = LoadHistory()
        self.estimates = LoadEstimates(models, catalogue, self.history, total_bytes=machine.total)
        self.arrivals = Arrivals(limits.arrivals_half_life_seconds)
        self.admission = Admission(
            self.budget,
            occupants=inhabitants,
            reload_seconds=self.estimates.reload_seconds,
            settings=settings,
            arrivals=self.arrivals,
            clock=clock,
            measure=self._measure,
        )
        self._pids: dict[str, int] = {}
        self._rule = PressureRule()

    def configure(self) -> None:
        """The settings are others now."""
        self.budget.limit_bytes = self._settings().limit_bytes(self._machine.total())
        self.admission.changed()

    async def admit(self, key: str) -> asyncio.Future[None]:
        """Wait until a model's memory is on its way, as `Admission.admit` does. Raises `GgufError` for a file that it
        cannot be, and `InsufficientMemory`."""
        # What it had before is gone, although nobody has seen the runtime without a worker.
        self.budget.release(key)
        await self._catalogue.inspect(key)
        return await self.admission.admit(key, self.estimates.predicted_bytes(key), self.estimates.least_bytes(key))

    def fits(self, key: str) -> bool:
        """Whether there is memory for it beside all the others."""
        needed = self.estimates.predicted_bytes(key)
        return needed is None or self.budget.fits(key, needed)

    def arrived(self, model: str) -> None:
        """A request has come."""
        self.arrivals.note(model, self._clock.monotonic())

    def changed(self, status: RuntimeStatus, state: State | None) -> None:
        """Something of a runtime is otherwise now; None for one that has gone."""
        if state not in HAS_WORKER or status.pid is None:
            self._pids.pop(status.id, None)
        else:
            self._pids[status.id] = status.pid
        if state not in HAS_WORKER:
            self.budget.release(status.id)
        self.admission.changed()

    def exchange(self, one: str, other: str) -> None:
        """Two runtimes take each other's keys."""
        self.budget.exchange(one, other)
        exchange(self._pids, one, other)
        self.admission.exchange(one, other)

    async def watch(self, trim_answers: Callable[[], object]) -> None:
        """Look after the machine's memory for ever; `trim_answers` empties the cache of answers."""
        while True:
            await asyncio.sleep(limits.memory_look_seconds)
            self._measure()
            if self.budget.holders():
                self._look(trim_answers)

    def _measure(self) -> None:
        for key, pid in self._pids.items():
            found = process_memory(pid)
            if found is not None and found.rss_bytes:
                self.budget.told(key, found.rss_bytes, found.own_bytes)

    def _look(self, trim_answers: Callable[[], object]) -> None:
        inhabitants, total, settings = self._inhabitants(), self._machine.total(), self._settings()
        now, free = self._clock.monotonic(), self._machine.available()
        workers = [
            Worker(resident, self.budget.rss_bytes(resident.key), self.budget.excess_bytes(resident.key))
            for resident in self.admission.residents(now)
            if resident.key in inhabitants
        ]
        relief = self._rule.look(
            workers,
            free_bytes=free,
            soft_bytes=settings.soft_free_bytes(total),
            hard_bytes=settings.hard_free_bytes(total),
            now=now,
        )
        self._relieve(relief, inhabitants, free)
        if relief.trim_answers:
            trim_answers()

    def _relieve(self, relief: Relief, inhabitants: Mapping[str, Inhabitant], free: int) -> None:
        for key in relief.trim:
            _log.info("gives up its caches", model=key, free=size_text(free))
            inhabitants[key].trim()
        for key in relief.unload:
            _log.warning("unloaded, because memory runs low", model=key, free=size_text(free))
            inhabitants[key].unload()
        if relief.stop is not None:
            excess = self.budget.excess_bytes(relief.stop)
            above = f", it has {size_text(excess)} more than was expected" if excess > 0 else ""
            reason = f"stopped before the machine runs out of memory: {size_text(free)} are free{above}"
            _log.error(reason, model=relief.stop)
            inhabitants[relief.stop].sacrifice(reason)

    def _available(self) -> int:
        """For models that load: what keeps the machine above the soft line."""
        return self._machine.available() - self._settings().soft_free_bytes(self._machine.total())
