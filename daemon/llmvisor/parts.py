"""Everything that the daemon is made of, built from its configuration. Nothing runs yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmvisor import limits
from llmvisor.broadcast import Hub
from llmvisor.cache.store import make_cache
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig
from llmvisor.config.tree import Cache, Config, ModelConfig
from llmvisor.control.api import Event, Job, RuntimeStatus
from llmvisor.errors import StoreUnavailable
from llmvisor.http.ids import Ids
from llmvisor.jobs.setup import make_fetch_runner, make_jobs
from llmvisor.keys.gate import Gate
from llmvisor.models.library import Library
from llmvisor.models.registry import Registry
from llmvisor.models.shelf import Shelf
from llmvisor.routing.names import Purpose
from llmvisor.services.cached import CachedService
from llmvisor.services.local import LocalService
from llmvisor.services.metered import MeteredService
from llmvisor.services.service import Service
from llmvisor.store.jobs import JobRows
from llmvisor.store.measures import MeasureRows
from llmvisor.store.models import ModelRows
from llmvisor.store.registry import RegistryRows
from llmvisor.store.store import Store
from llmvisor.store.usage import UsageRows
from llmvisor.supervision.memory.measured import LoadMeasurer
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.supervisor import Supervisor
from llmvisor.usage import UsageRecorder


class Parts:
    """The parts, and how they tell each other what happens."""

    def __init__(self, loaded: LoadedConfig, *, clock: Clock) -> None:
        self.loaded = loaded
        config = loaded.config
        self.clock = clock
        self.run_dir = Path(config.control.socket or "").parent
        self.ids = Ids(clock, os.urandom)
        self.events: Hub[Event] = Hub(limits.subscriber_queue_events_max)
        self.supervisor = Supervisor(config, run_dir=self.run_dir, clock=clock, publish=self._publish_runtime)
        storage = Path(config.storage.dir or "")
        self.gate = Gate(storage, loaded.api_keys, clock=clock)
        self.store = Store(storage / "llmvisor.db", clock)
        self.library = Library(
            Shelf(storage / "models"), ModelRows(self.store), self.supervisor, llm=config.llm, clock=clock
        )
        self._local = LocalService(self.supervisor, self.library, cache_always=config.cache.always)
        self.cache = make_cache(config.cache, clock)
        self._cached = CachedService(self._local, self.cache, touch=self.supervisor.touch)
        self._metered = MeteredService(self._before(config.cache), clock=clock)
        self.service: Service = self._metered
        self.usage = UsageRecorder(UsageRows(self.store))
        self._measures = MeasureRows(self.store)
        self.measurer = LoadMeasurer(
            self._measures, config=self._config_of, clock=clock, history=self.supervisor.residency.history
        )
        self._fetcher = make_fetch_runner(run_dir=self.run_dir, clock=clock)
        self.jobs = make_jobs(
            lambda: self.config,
            runtime=self._local.runtime,
            library=self.library,
            fetcher=self._fetcher,
            records=JobRows(self.store),
            publish=self._publish_job,
            new_id=lambda: self.ids.new("job_"),
            clock=clock,
        )
        self.registry = Registry(
            self._fetcher,
            RegistryRows(self.store),
            registries=config.registries,
            memory_bytes=lambda: self.supervisor.memory.limit_bytes,
            clock=clock,
        )

    @property
    def config(self) -> Config:
        """What holds now."""
        return self.loaded.config

    def resolve(self, requested: str | None, purpose: Purpose = "name") -> str:
        """The model that a request means. Raises `ModelNotFound`, `TierNotConfigured`."""
        fallback = self.config.llm.fallback_to_loaded
        runtimes = self.supervisor.runtimes if fallback else {}
        loaded = (name for name, runtime in runtimes.items() if runtime.state is State.READY)
        return self.supervisor.names.resolve(requested, purpose=purpose, loaded=loaded).name

    async def open_stored(self, installed: Callable[[], None]) -> None:
        """What is installed and under way, while the port is open already: a slow disk holds up nothing else.

        `installed` is called as soon as the installed models are known, before anybody asks for one.
        """
        await self.store.open()
        with suppress(StoreUnavailable):
            self.supervisor.residency.history.restore(await self._measures.all())
        await self.library.open()
        installed()
        await self.jobs.open()

    async def configure_cache(self, config: Cache) -> None:
        """What is kept of answers and of prompts, from now on. Raises OSError where a folder cannot be used."""
        await self.cache.configure(config)
        self._local.configure(cache_always=config.always)
        self._metered.stand_before(self._before(config))

    def _before(self, config: Cache) -> Service:
        """What answers, behind the counting."""
        return self._cached if config.enabled else self._local

    def _config_of(self, model: str) -> ModelConfig | None:
        """What a model's runtime runs with."""
        runtime = self.supervisor.runtimes.get(model)
        return None if runtime is None else runtime.config

    def _publish_runtime(self, status: RuntimeStatus) -> None:
        self.jobs.on_runtime(status)
        self.measurer.observe(status)
        runtime = self.supervisor.runtimes.get(status.model)
        if runtime is not None and runtime.info is not None and status.state in {"loaded", "busy"}:
            self.library.on_loaded(runtime.name, runtime.config.path, runtime.info.capabilities)
        self.events.publish(Event(self.clock.now().isoformat(), "runtime", runtime=status))

    def _publish_job(self, job: Job) -> None:
        self.events.publish(Event(self.clock.now().isoformat(), "job", job=job))
