"""All runtimes of the daemon together: made from the configuration, preloaded, and ended."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import secrets
import sys
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.reload import is_same_model
from llmvisor.config.tree import Config, ModelConfig
from llmvisor.control.api import BackendStatus, RuntimeStatus
from llmvisor.errors import ModelNotFound, ShuttingDown
from llmvisor.log import get_logger
from llmvisor.models import limits as model_limits
from llmvisor.models.catalogue import Catalogue, file_signature, paths_in
from llmvisor.models.gguf import GgufError
from llmvisor.routing.names import NamedModel, NameIndex
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.inventory import inventory
from llmvisor.supervision.memory.machine_memory import MachineMemory
from llmvisor.supervision.memory.residency import Residency
from llmvisor.supervision.replacing import Replacing
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.scheduling.state import HAS_WORKER, State
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.workers.orphans import OrphanJournal, sweep
from llmvisor.supervision.workers.worker import adopt_worker, start_worker
from llmvisor_runtimes.backend import ENTRY_POINT_GROUP
from llmvisor_runtimes.cores import available_cores

Value = TypeVar("Value")
_log = get_logger(__name__)


class _Installed(msgspec.Struct, frozen=True):
    config: ModelConfig
    type: str


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
        self.configs = dict(config.models)
        """Of all models: the configuration's in its order, then the installed ones."""
        self.version = 0
        """Another one after every change of these."""
        self._installed: dict[str, _Installed] = {}
        self._closing = False
        self.replacing = Replacing(self, self._replacement_ended)
        self.stayed: dict[str, str] = {}
        """Models that cannot be loaded as they are configured and run as they were before: why."""
        # Those on trial are known by keys of their own.
        configs = ChainMap(self.configs, self.replacing.configs)
        self.catalogue = Catalogue(configs)
        self.residency = Residency(
            configs,
            self.catalogue,
            machine=MachineMemory(os.environ),
            inhabitants=self.by_key,
            settings=lambda: self._config.memory,
            clock=clock,
        )
        self.memory = self.residency.budget
        self.names = NameIndex(lambda model: self.type(model.name))
        for name in config.models:
            self._name(name)
        fixed = {name: model.n_threads for name, model in config.models.items() if model.n_threads}
        self.cores = CoreShares(config.cpu.threads or available_cores(), fixed, self._set_threads)
        self.journal = OrphanJournal(run_dir)
        self._setup = RuntimeSetup(
            start_worker=functools.partial(
                start_worker,
                journal=self.journal,
                clock=clock,
                nonce_source=functools.partial(secrets.token_hex, 16),
            ),
            admit=self.residency.admit,
            file_signature=file_signature,
            publish=self._changed,
            arrived=self.residency.arrived,
            settled=self.residency.admission.changed,
            clock=clock,
            random=random.random,
            cores=self.cores,
            state_dir=config.cache.state_dir or "",
            python=self._python,
            sandbox=config.server.sandbox,
            adopt_worker=functools.partial(adopt_worker, journal=self.journal, clock=clock),
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
            runtime = self.runtimes[name] = self.make(name, config, key=name)
        return runtime

    def type(self, name: str) -> str:
        """What a model is, as its file says, or as it said when it was installed."""
        return self.catalogue.type(name, before_read=self._installed[name].type if name in self._installed else "llm")

    def is_configured(self, name: str) -> bool:
        return name in self._config.models

    def add(self, name: str, config: ModelConfig, *, type: str) -> None:
        """A model has been installed. Costs nothing until somebody wants it."""
        self.put_installed(name, config, type=type)
        if not self.is_configured(name):
            self.version += 1
            self.configs[name] = config
            self._name(name)

    def put_installed(self, name: str, config: ModelConfig, *, type: str) -> None:
        """How an installed model is to run, once `configure` looks at it."""
        self._installed[name] = _Installed(config, type)

    def replace(self, name: str, config: ModelConfig, *, type: str) -> None:
        """An installed model has another revision: its worker finishes what runs, and the next one loads that."""
        self.add(name, config, type=type)
        if not self.is_configured(name):
            self.replacing.abandon(name)  # else it would come back to the revision before
            self.catalogue.forget(name)
            if (runtime := self.runtimes.get(name)) is not None:
                runtime.reconfigure(config)

    async def remove(self, name: str) -> None:
        """An installed model is deleted: nobody finds it any more, and what still runs of it ends."""
        self._installed.pop(name, None)
        if self.is_configured(name) or name not in self.configs:
            return
        self.version += 1
        self.replacing.abandon(name)
        del self.configs[name]
        self.names.remove(name)
        self.catalogue.forget(name)
        runtime = self.runtimes.get(name)
        if runtime is None:
            return
        runtime.end_requests(ModelNotFound(f"the model '{name}' has been deleted", param="model"))
        runtime.shutdown()
        runtime.unload(force=True)
        try:
            await asyncio.wait_for(_closed(runtime), model_limits.remove_wait_seconds_max)
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

    # ------------------------------------------------------------------------------------------------ when it changes

    def configure(self, config: Config, *, anew: Collection[str] = ()) -> None:
        """Another configuration holds: each model takes what has changed of it, those of `anew` with a new worker."""
        self._config = config
        self.version += 1
        self.residency.configure()
        self.cores.configure(config.cpu.threads or available_cores())
        self._setup.state_dir, self._setup.sandbox = config.cache.state_dir or "", config.server.sandbox
        wanted = self._wanted()
        for name in [name for name in self.configs if name not in wanted]:
            self._let_go(name)
        new = [name for name in config.models if name not in self.runtimes]
        before = {name: self.replacing.wanted(name) for name in self.configs}
        _put_in_order(self.configs, {name: self.configs.get(name, model) for name, model in wanted.items()})
        for name, model in wanted.items():
            if name in before and (name in anew or not is_same_model(before[name], model)):
                self.stayed.pop(name, None)
                self.replacing.change(name, model, forced=name in anew)
        self._name_all(wanted)
        for name in new:
            if self.runtime(name).config.preload:
                self.runtime(name).load()
        _put_in_order(self.runtimes, {name: self.runtimes[name] for name in wanted if name in self.runtimes})

    def _wanted(self) -> dict[str, ModelConfig]:
        """All models as they are to be: the configuration's, then the installed ones that it does not have."""
        installed = {name: each.config for name, each in self._installed.items() if not self.is_configured(name)}
        return {**self._config.models, **installed}

    def _let_go(self, name: str) -> None:
        self.replacing.abandon(name)
        del self.configs[name]
        self.stayed.pop(name, None)
        if (runtime := self.runtimes.pop(name, None)) is not None:
            self.replacing.leave(runtime)
        self.cores.fix(name, None)

    def _name_all(self, wanted: Mapping[str, ModelConfig]) -> None:
        self.names = NameIndex(lambda model: self.type(model.name))
        for name, config in wanted.items():
            self._name(name, config)

    def _replacement_ended(self, name: str, reason: str | None) -> None:
        self.stayed.pop(name, None)
        if reason is not None:
            self.stayed[name] = reason

    # ------------------------------------------------------------------------------------------------ see `Replacing`

    def by_key(self) -> dict[str, Runtime]:
        """Every runtime that there is, those included that are about to serve a model, or have done so."""
        return {**{runtime.key: runtime for runtime in self.runtimes.values()}, **self.replacing.beside}

    def make(self, name: str, config: ModelConfig, *, key: str) -> Runtime:
        self.cores.fix(key, config.n_threads)
        runtime = Runtime(name, config, self._setup, key=key)
        if self._closing:
            runtime.shutdown()
        return runtime

    async def inspect(self, key: str) -> None:
        await self.catalogue.inspect(key)

    def fits(self, key: str) -> bool:
        return self.residency.fits(key)

    def exchange(self, runtime: Runtime, other: str) -> None:
        mine, peer = runtime.key, self.by_key().get(other)
        for known in (self.residency, self.cores, self.catalogue):
            known.exchange(mine, other)
        runtime.key = other
        if peer is not None:
            peer.key = mine

    def forget(self, key: str) -> None:
        self.memory.release(key)
        self.cores.fix(key, None)
        self.catalogue.forget(key)

    def replaced(self, name: str) -> None:
        self.version += 1
        if (runtime := self.runtimes.get(name)) is not None:
            self.cores.fix(name, self.configs[name].n_threads)
            self._publish(runtime.status())

    # ------------------------------------------------------------------------------------------------ all together

    @property
    def in_flight(self) -> int:
        """Requests that wait or run, over all models."""
        return sum(runtime.in_flight for runtime in self.by_key().values())

    @property
    def idle_since(self) -> float:
        """The monotonic time since when there was no request at all; now, while there is one."""
        if self.in_flight:
            return self._clock.monotonic()
        return max([self._touched_at, *(runtime.active_at for runtime in self.by_key().values())])

    def unsupervised(self) -> str | None:
        """A model that nobody has looked after although it is time: a bug of ours; None for none."""
        late = self._clock.monotonic() - limits.supervision_late_seconds_max
        for name, runtime in self.runtimes.items():
            if runtime.wakes_at is not None and runtime.wakes_at < late:
                return f"{name} is not looked after any more"
        return None

    def touch(self) -> None:
        """A request was answered without any model: the daemon is in use all the same."""
        self._touched_at = self._clock.monotonic()

    async def backends(self) -> list[BackendStatus]:
        """Every backend that this daemon or its configuration knows, each imported anew."""
        names = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
        return await inventory(names | self._config.backends.keys(), self._python)

    def sweep(self, *, spared: Collection[str] = ()) -> None:
        """Kill what a daemon that was killed left behind, but for workers of these nonces. For the lock's holder."""
        swept = sweep(self._run_dir, spared=spared)
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
        self.replacing.close()
        ending = list(self.by_key().values())
        for runtime in ending:
            runtime.shutdown()
        closed = asyncio.gather(*map(_closed, ending))
        hurried = asyncio.create_task(hurry.wait(), name="hurry")
        await asyncio.wait([closed, hurried], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not closed.done():
            _log.warning("ending what is still in flight", in_flight=self.in_flight)
            for runtime in ending:
                runtime.end_requests(ShuttingDown("the server is shutting down"))
                runtime.unload(force=True)
            await asyncio.wait([closed], timeout=limits.abort_grace_seconds + limits.kill_wait_seconds_max)
        for waiting in (closed, hurried):
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting

    def _set_threads(self, key: str, threads: int) -> None:
        if (runtime := self.by_key().get(key)) is not None:
            runtime.set_threads(threads)

    def _name(self, name: str, config: ModelConfig | None = None) -> None:
        config = config or self.configs[name]
        self.names.put(NamedModel(name, config.tier, config.aliases, installed=not self.is_configured(name)))

    def _python(self, backend: str) -> str:
        configured = self._config.backends.get(backend)
        return configured.python if configured and configured.python else sys.executable

    def _changed(self, status: RuntimeStatus) -> None:
        key = status.id
        runtime = self.by_key().get(key)
        self.residency.changed(status, None if runtime is None else runtime.state)
        if key == status.model:
            self._publish(status)


async def _closed(runtime: Runtime) -> None:
    await runtime.wait_while(*(set(State) - {State.CLOSED}))


def _put_in_order(there: dict[str, Value], wanted: Mapping[str, Value]) -> None:
    """Make a dictionary that others hold equal to another one, and of the same order."""
    there.clear()
    there.update(wanted)
