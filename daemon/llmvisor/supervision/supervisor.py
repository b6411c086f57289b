"""All runtimes of the daemon together: made from the configuration, preloaded, and ended."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import Config
from llmvisor.control.api import BackendStatus, RuntimeStatus
from llmvisor.errors import ShuttingDown
from llmvisor.log import get_logger
from llmvisor.models.catalogue import Catalogue, file_signature
from llmvisor.models.gguf import GgufError
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.inventory import inventory
from llmvisor.supervision.memory import MemoryBudget, available_memory_bytes, machine_memory_bytes
from llmvisor.supervision.orphans import OrphanJournal, sweep
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.state import HAS_WORKER, State
from llmvisor.supervision.worker import start_worker
from llmvisor_runtimes.backend import ENTRY_POINT_GROUP
from llmvisor_runtimes.cores import available_cores

_log = get_logger(__name__)


class Supervisor:
    """A runtime for each model of the configuration. `publish` is told of every change."""

    def __init__(
        self, config: Config, *, run_dir: Path, clock: Clock, publish: Callable[[RuntimeStatus], None]
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._publish = publish
        self._clock = clock
        self._touched_at = clock.monotonic()
        self.memory = MemoryBudget(config.memory.limit_bytes(machine_memory_bytes()), available=available_memory_bytes)
        self.catalogue = Catalogue(config.models)
        fixed = {name: model.n_threads for name, model in config.models.items() if model.n_threads}
        self.cores = CoreShares(config.cpu.threads or available_cores(), fixed, self._set_threads)
        setup = RuntimeSetup(
            start_worker=functools.partial(
                start_worker,
                journal=OrphanJournal(run_dir),
                clock=clock,
                nonce_source=functools.partial(secrets.token_hex, 16),
            ),
            admit=self._admit,
            file_signature=file_signature,
            publish=self._changed,
            clock=clock,
            random=random.random,
            cores=self.cores,
            state_dir=config.cache.state_dir or "",
            python=self._python,
        )
        self.runtimes = {name: Runtime(name, model, setup) for name, model in config.models.items()}

    @property
    def in_flight(self) -> int:
        """Requests that wait or run, over all models."""
        return sum(runtime.in_flight for runtime in self.runtimes.values())

    @property
    def idle_since(self) -> float:
        """The monotonic time since when there was no request at all; now, while there is one."""
        if self.in_flight:
            return self._clock.monotonic()
        return max([self._touched_at, *(runtime.active_at for runtime in self.runtimes.values())])

    def touch(self) -> None:
        """A request was answered without any model: the daemon is in use all the same."""
        self._touched_at = self._clock.monotonic()

    async def backends(self) -> list[BackendStatus]:
        """Every backend that this daemon or its configuration knows, each imported anew."""
        names = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
        return await inventory(names | self._config.backends.keys(), self._python)

    def sweep(self) -> None:
        """Kill what a daemon that was killed left behind. Only for the holder of the lock."""
        swept = sweep(self._run_dir)
        if swept.killed:
            _log.warning("killed workers of a daemon that is gone", models=[entry.model for entry in swept.killed])

    def preload(self) -> None:
        for runtime in self.runtimes.values():
            if runtime.config.preload:
                runtime.load()

    async def read_headers(self) -> None:
        """Read every model's file, so that lists tell what they are before anything is loaded."""
        for name in self.runtimes:
            try:
                await self.catalogue.inspect(name)
            except GgufError as error:
                _log.warning("the model's file cannot be used", model=name, reason=str(error))

    async def drain(self, *, seconds: float, hurry: asyncio.Event) -> None:
        """Let what runs finish for so long (or until `hurry` is set), then end it, and every worker."""
        for runtime in self.runtimes.values():
            runtime.shutdown()
        closed = asyncio.gather(*map(_closed, self.runtimes.values()))
        hurried = asyncio.create_task(hurry.wait(), name="hurry")
        await asyncio.wait([closed, hurried], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done():
            _log.warning("ending what is still in flight", in_flight=self.in_flight)
            for runtime in self.runtimes.values():
                runtime.end_requests(ShuttingDown("the server is shutting down"))
                runtime.unload(force=True)
            await asyncio.wait([closed], timeout=limits.abort_grace_seconds + limits.kill_wait_seconds_max)
        for waiting in (closed, hurried):
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting

    def _set_threads(self, name: str, threads: int) -> None:
        self.runtimes[name].set_threads(threads)

    def _python(self, backend: str) -> str:
        configured = self._config.backends.get(backend)
        return configured.python if configured and configured.python else sys.executable

    async def _admit(self, name: str) -> None:
        await self.catalogue.inspect(name)
        needed = self.catalogue.memory_estimated(name)
        if needed is not None:
            self.memory.reserve(name, needed)

    def _changed(self, status: RuntimeStatus) -> None:
        if self.runtimes[status.model].state not in HAS_WORKER:
            self.memory.release(status.model)
        self._publish(status)


async def _closed(runtime: Runtime) -> None:
    await runtime.wait_while(*(set(State) - {State.CLOSED}))
