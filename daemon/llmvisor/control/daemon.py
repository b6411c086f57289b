"""The daemon as its management sees it: gathers what the parts know, and hands on what people ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import msgspec

from llmvisor import __version__
from llmvisor.broadcast import Hub, Subscription
from llmvisor.cache.store import ResponseCache
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig, config_values
from llmvisor.control.api import (
    BackendStatus,
    CacheStats,
    ConfigValue,
    DaemonStatus,
    Event,
    HealthAnswer,
    Job,
    JobRequest,
    LogLevel,
    LogRecord,
    RegistryModel,
    RuntimeStatus,
    UsageRow,
)
from llmvisor.jobs.engine import Jobs
from llmvisor.jobs.history import JobEvent
from llmvisor.log import LogHub
from llmvisor.models.registry import Registry, RegistryName
from llmvisor.store.store import Store
from llmvisor.store.usage import UsageGroup
from llmvisor.supervision.supervisor import Supervisor
from llmvisor.usage import UsageRecorder

_DOWN = {"error", "unavailable", "not_loaded"}
"""States in which a model with an error is down, `not_loaded` for want of memory."""


class Endpoints(msgspec.Struct):
    """Where the daemon can be reached, filled in once it is bound."""

    address: str = ""
    socket: str = ""


class DaemonControl:
    """Implements `control.control.Control`."""

    def __init__(
        self,
        *,
        loaded: LoadedConfig,
        supervisor: Supervisor,
        jobs: Jobs,
        events: Hub[Event],
        logs: LogHub,
        endpoints: Endpoints,
        cache: ResponseCache,
        store: Store,
        usage: UsageRecorder,
        registry: Registry,
        clock: Clock,
        check: Callable[[str, str], list[str]],
        stop: Callable[[], None],
    ) -> None:
        self._loaded = loaded
        self._supervisor = supervisor
        self._runtimes = supervisor.runtimes
        self._jobs = jobs
        self._events = events
        self._logs = logs
        self._endpoints = endpoints
        self._cache = cache
        self._store = store
        self._usage = usage
        self._registry = registry
        self._clock = clock
        self._check = check
        self._stop = stop
        self._started_at = clock.now().isoformat()
        self._started = clock.monotonic()
        self.draining = False

    # ------------------------------------------------------------------------------------------------ status

    def health(self) -> HealthAnswer:
        timestamp = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.draining:
            return HealthAnswer("unhealthy", timestamp, ["the daemon is shutting down"])
        kept = [runtime for runtime in self._runtimes.values() if runtime.config.pinned or runtime.config.preload]
        reasons = [
            f"{status.model} is {status.state}: {status.error}"
            for status in (runtime.status() for runtime in kept)
            if status.error is not None and status.state in _DOWN
        ]
        if (problem := self._store.degraded) is not None:
            reasons.append(problem)
        return HealthAnswer("degraded" if reasons else "healthy", timestamp, reasons)

    def ready(self) -> Sequence[str]:
        if self.draining:
            return ["the daemon is shutting down"]
        return [
            f"{runtime.name} is {state}"
            for runtime in self._runtimes.values()
            if runtime.config.preload and (state := runtime.status().state) not in {"loaded", "busy"}
        ]

    def daemon_status(self) -> DaemonStatus:
        runtimes = self.runtimes()
        health = self.health()
        file = self._loaded.file
        return DaemonStatus(
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            uptime_seconds=self._clock.monotonic() - self._started,
            address=self._endpoints.address,
            socket=self._endpoints.socket,
            config_file=str(file) if file else None,
            health=health.status,
            reasons=health.reasons,
            memory_limit=self._supervisor.memory.limit_bytes,
            memory_used=sum(status.memory or 0 for status in runtimes),
            in_flight=self._supervisor.in_flight,
            log_dropped=self._logs.dropped,
            runtimes=runtimes,
            jobs=[job for job in self._jobs.all() if job.ended_at is None],
        )

    def runtimes(self) -> list[RuntimeStatus]:
        return [runtime.status() for runtime in self._runtimes.values()]

    def runtime(self, model: str) -> RuntimeStatus:
        return self._supervisor.runtime(model).status()

    async def read_header(self, model: str) -> None:
        await self._supervisor.read_header(model)

    def cache_stats(self) -> CacheStats:
        return self._cache.stats()

    async def usage(self, group_by: Sequence[UsageGroup], *, since: str | None) -> list[UsageRow]:
        return await self._usage.sums(group_by, since=since)

    async def search_registries(self, query: str, *, registry: RegistryName | None, limit: int) -> list[RegistryModel]:
        return await self._registry.search(query, registry=registry, limit=limit)

    def clear_cache(self) -> int:
        return self._cache.clear()

    async def backends(self) -> list[BackendStatus]:
        return await self._supervisor.backends()

    # ------------------------------------------------------------------------------------------------ jobs

    async def submit_job(self, request: JobRequest) -> Job:
        return await self._jobs.submit(request)

    async def jobs_known(self) -> None:
        await self._jobs.opened()

    def jobs(self) -> list[Job]:
        return self._jobs.all()

    def job(self, job_id: str) -> Job:
        return self._jobs.get(job_id)

    def watch_job(self, job_id: str, after: int | None) -> AbstractContextManager[Subscription[JobEvent]]:
        return self._jobs.watch(job_id, after)

    async def cancel_job(self, job_id: str) -> Job:
        return await self._jobs.cancel(job_id)

    def forget_job(self, job_id: str) -> None:
        self._jobs.forget(job_id)

    # ------------------------------------------------------------------------------------------------ events and logs

    def subscribe_events(self) -> AbstractContextManager[Subscription[Event]]:
        return self._events.subscribe()

    def recent_logs(self, *, model: str | None, level: LogLevel) -> list[LogRecord]:
        return self._logs.recent(model, level)

    def subscribe_logs(self) -> AbstractContextManager[Subscription[LogRecord]]:
        return self._logs.hub.subscribe()

    # ------------------------------------------------------------------------------------------------ configuration

    def config_values(self) -> Iterator[ConfigValue]:
        return config_values(self._loaded)

    def check_config(self, text: str, name: str) -> list[str]:
        return self._check(text, name)

    def shutdown(self) -> None:
        self._stop()
