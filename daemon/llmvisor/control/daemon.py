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
    ConfigStatus,
    ConfigValue,
    DaemonStatus,
    Event,
    HealthAnswer,
    Job,
    JobRequest,
    LogLevel,
    LogRecord,
    Postmortem,
    RegistryModel,
    ReloadReport,
    RuntimeStatus,
    UpgradeRequest,
    UpgradeStatus,
    UsageRow,
)
from llmvisor.errors import Conflict, InvalidConfig, ReloadFailed, ShuttingDown
from llmvisor.jobs.engine import Jobs
from llmvisor.jobs.history import JobEvent
from llmvisor.keys.gate import Gate
from llmvisor.log import LogHub
from llmvisor.models.registry import Registry, RegistryName
from llmvisor.reloading import Reloader
from llmvisor.store.store import Store
from llmvisor.store.usage import UsageGroup
from llmvisor.supervision.supervisor import Supervisor
from llmvisor.upgrade.upgrader import Upgrader
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
        loaded: Callable[[], LoadedConfig],
        supervisor: Supervisor,
        jobs: Jobs,
        events: Hub[Event],
        logs: LogHub,
        endpoints: Endpoints,
        cache: ResponseCache,
        store: Store,
        usage: UsageRecorder,
        registry: Registry,
        gate: Gate,
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
        self._gate = gate
        self._clock = clock
        self._check = check
        self._stop = stop
        self._started_at = clock.now().isoformat()
        self._started = clock.monotonic()
        self.draining = False
        self.reloader: Reloader | None = None
        self.upgrader: Upgrader | None = None
        """Once the daemon serves."""

    @property
    def since(self) -> tuple[float, str]:
        """When the daemon was started, on its clock and for people."""
        return self._started, self._started_at

    def goes_on(self, started: float, started_at: str) -> None:
        """An earlier run of this process has begun then."""
        self._started, self._started_at = started, started_at

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
        reasons += [problem for problem in (self._store.degraded, self._gate.problem) if problem is not None]
        reasons += _reasons(self._config_status())
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
        file = self._loaded().file
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
            upgrade=UpgradeStatus() if self.upgrader is None else self.upgrader.status,
            config=self._config_status(),
        )

    def runtimes(self) -> list[RuntimeStatus]:
        return [runtime.status() for runtime in self._runtimes.values()]

    def runtime(self, model: str) -> RuntimeStatus:
        return self._supervisor.runtime(model).status()

    def postmortems(self, model: str | None = None) -> list[Postmortem]:
        if model is not None:
            return self._supervisor.runtime(model).postmortems.all()
        found = [one for runtime in self._runtimes.values() for one in runtime.postmortems.all()]
        return sorted(found, key=lambda one: one.time, reverse=True)

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
        return config_values(self._loaded())

    def _config_status(self) -> ConfigStatus:
        return ConfigStatus() if self.reloader is None else self.reloader.status()

    async def reload_config(self) -> ReloadReport:
        return _succeeded(await self._reloader().reload("request"))

    async def put_config(self, text: str) -> ReloadReport:
        return _succeeded(await self._reloader().put(text))

    def _reloader(self) -> Reloader:
        if self.reloader is None:
            raise ShuttingDown("the daemon is only starting")
        return self.reloader

    def check_config(self, text: str, name: str) -> list[str]:
        return self._check(text, name)

    def restart(self, request: UpgradeRequest) -> UpgradeStatus:
        if self.draining or self.upgrader is None:
            raise Conflict("the daemon is starting or stopping")
        return self.upgrader.request(timeout_seconds=request.timeout_seconds, force=request.force)

    def shutdown(self) -> None:
        self._stop()


def _reasons(config: ConfigStatus) -> list[str]:
    """What of the configuration's files does not hold."""
    stayed = [f"{model} runs with its earlier configuration: {reason}" for model, reason in config.stayed.items()]
    return [*(f"the configuration could not be reloaded: {problem}" for problem in config.problems), *stayed]


def _succeeded(report: ReloadReport) -> ReloadReport:
    """Raises what a reload that did not is answered with."""
    if report.outcome == "refused":
        raise InvalidConfig("the earlier configuration goes on: " + "; ".join(report.problems))
    if report.outcome == "failed":
        raise ReloadFailed("the earlier configuration goes on: " + "; ".join(report.problems))
    return report
