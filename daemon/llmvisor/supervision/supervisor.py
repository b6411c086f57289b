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
from llmvisor.config.tree import Config, ModelConfig
from llmvisor.control.api import BackendStatus, RuntimeStatus
from llmvisor.errors import ModelNotFound, ShuttingDown
from llmvisor.log import get_logger
from llmvisor.models.catalogue import Catalogue, file_signature, paths_in
from llmvisor.models.gguf import GgufError
from llmvisor.routing.names import NamedModel, NameIndex
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
    """A runtime for each model of the configuration, and for each installed one that was wanted once.

    The configuration wins over an installed model of the same name. `publish` is told of every change.
    """

    def __init__(
        self, config: Config, *, run_dir: Path, clock: Clock, publish: Callable[[RuntimeStatus], None]
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._publish = publish
        self._clock = clock
        self._touched_at = clock.monotonic()
        self.memory = MemoryBudget(config.memory.limit_bytes(machine_memory_bytes()), available=available_memory_bytes)
        self.configs = dict(config.models)
        """Of all models: the configuration's in its order, then the installed ones."""
        self.version = 0
        """Another one after every change of these."""
        self._types: dict[str, str] = {}
        self._closing = False
        self.catalogue = Catalogue(self.configs)
        self.names = NameIndex(lambda model: self.type(model.name))
        for name in config.models:
            self._name(name)
        fixed = {name: model.n_threads for name, model in config.models.items() if model.n_threads}
        self.cores = CoreShares(config.cpu.threads or available_cores(), fixed, self._set_threads)
        self._setup = RuntimeSetup(
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
        self.runtimes = {name: Runtime(name, model, self._setup) for name, model in config.models.items()}
        """Those that there are; `runtime` makes the others."""

    # ------------------------------------------------------------------------------------------------ models

    def runtime(self, name: str) -> Runtime:
        """Raises `ModelNotFound`."""
        config = self.configs.get(name)
        if config is None:
            raise ModelNotFound(f"the model '{name}' does not exist", param="model")
        runtime = self.runtimes.get(name)
        if runtime is None:
            runtime = self.runtimes[name] = Runtime(name, config, self._setup)
            if self._closing:
                runtime.shutdown()
        return runtime

    def type(self, name: str) -> str:
        """What a model is, as its file says, or as it said when it was installed."""
        return self.catalogue.type(name, before_read=self._types.get(name, "llm"))

    def is_configured(self, name: str) -> bool:
        return name in self._config.models

    def add(self, name: str, config: ModelConfig, *, type: str) -> None:
        """A model has been installed. Costs nothing until somebody wants it."""
        if not self.is_configured(name):
            self.version += 1
            self.configs[name] = config
            self._types[name] = type
            self._name(name)

    def replace(self, name: str, config: ModelConfig, *, type: str) -> None:
        """An installed model has another revision: its worker finishes what runs, and the next one loads that."""
        self.add(name, config, type=type)
        if not self.is_configured(name):
            self.catalogue.forget(name)
            if (runtime := self.runtimes.get(name)) is not None:
                runtime.reconfigure(config)

    async def remove(self, name: str) -> None:
        """An installed model is deleted: nobody finds it any more, and what still runs of it ends."""
        if self.is_configured(name) or name not in self.configs:
            return
        self.version += 1
        del self.configs[name]
        del self._types[name]
        self.names.remove(name)
        self.catalogue.forget(name)
        runtime = self.runtimes.get(name)
        if runtime is None:
            return
        runtime.end_requests(ModelNotFound(f"the model '{name}' has been deleted", param="model"))
        runtime.shutdown()
        runtime.unload(force=True)
        try:
            await asyncio.wait_for(_closed(runtime), limits.remove_wait_seconds_max)
        except TimeoutError:
            _log.error("the worker of a deleted model does not end", model=name)
        if self.runtimes.get(name) is runtime:
            del self.runtimes[name]

    def in_use(self, name: str, folder: str) -> str | None:
        """Who uses an installed model, or files of its folder; None for nobody."""
        if (other := self.configured_in(folder)) is not None:
            return f"the configuration's model '{other}' has its files"
        runtime = None if self.is_configured(name) else self.runtimes.get(name)
        if runtime is None or not (runtime.in_flight or runtime.state in HAS_WORKER):
            return None
        requests = f", and {runtime.in_flight} of its requests are under way" if runtime.in_flight else ""
        return f"it is {runtime.state.value}{requests}"

    def configured_in(self, folder: str) -> str | None:
        """A model of the configuration that has files in this folder."""
        for name, config in self._config.models.items():
            if any(Path(path).is_relative_to(folder) for path in (config.path or "", *paths_in(config.options))):
                return name
        return None

    # ------------------------------------------------------------------------------------------------ all together

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
        """Read every configured model's file, so that lists tell what they are before anything is loaded."""
        for name in self._config.models:
            await self.read_header(name)

    async def read_header(self, name: str) -> None:
        """Read a model's file, where it has changed since it was read."""
        try:
            await self.catalogue.inspect(name)
        except GgufError as error:
            _log.warning("the model's file cannot be used", model=name, reason=str(error))

    async def drain(self, *, seconds: float, hurry: asyncio.Event) -> None:
        """Let what runs finish for so long (or until `hurry` is set), then end it, and every worker."""
        self._closing = True
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
        if (runtime := self.runtimes.get(name)) is not None:
            runtime.set_threads(threads)

    def _name(self, name: str) -> None:
        config = self.configs[name]
        self.names.put(NamedModel(name, config.tier, config.aliases, installed=not self.is_configured(name)))

    def _python(self, backend: str) -> str:
        configured = self._config.backends.get(backend)
        return configured.python if configured and configured.python else sys.executable

    async def _admit(self, name: str) -> None:
        await self.catalogue.inspect(name)
        needed = self.catalogue.memory_estimated(name)
        if needed is not None:
            self.memory.reserve(name, needed)

    def _changed(self, status: RuntimeStatus) -> None:
        runtime = self.runtimes.get(status.model)
        if runtime is None or runtime.state not in HAS_WORKER:
            self.memory.release(status.model)
        self._publish(status)


async def _closed(runtime: Runtime) -> None:
    await runtime.wait_while(*(set(State) - {State.CLOSED}))
