"""A Control that answers from fields a test sets, and keeps what it was told."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from llmvisor.broadcast import Hub, Subscription
from llmvisor.control.api import (
    BackendStatus,
    CacheStats,
    ConfigValue,
    DaemonStatus,
    Event,
    HealthAnswer,
    Job,
    JobParams,
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
from llmvisor.errors import Conflict, InvalidConfig, ModelNotFound, NotFound
from llmvisor.jobs.history import JobEvent
from llmvisor.models.registry import RegistryName
from llmvisor.store.usage import UsageGroup

T = TypeVar("T")
TIME = "2026-01-01T00:00:00Z"
RUNTIME = RuntimeStatus(id="smol", model="smol", tier="light", backend="mock", state="loaded", since=TIME, pid=4711)


def job(id: str, *, model: str = "smol", state: str = "running", **changes: object) -> Job:
    """A load of a model."""
    fields = {
        "id": id,
        "type": "load",
        "params": JobParams(model=model),
        "state": state,
        "progress": 0.5,
        "stage": "weights",
        "done": 50,
        "total": 100,
        "unit": "bytes",
        "created_at": TIME,
    }
    return msgspec.convert(fields | changes, Job, from_attributes=True)


def record(message: str, *, level: LogLevel = "info", model: str | None = None) -> LogRecord:
    return LogRecord(time=TIME, level=level, module="test", message=message, model=model)


@dataclass
class FakeControl:
    """See `control.control.Control`."""

    health_answer: HealthAnswer = field(default_factory=lambda: HealthAnswer(status="healthy", timestamp=TIME))
    missing: list[str] = field(default_factory=list[str])
    job_list: list[Job] = field(default_factory=list[Job])
    submitted: list[JobRequest] = field(default_factory=list[JobRequest])
    records: list[LogRecord] = field(default_factory=list[LogRecord])
    problems: list[str] = field(default_factory=list[str])
    checked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    put: list[str] = field(default_factory=list[str])
    reload_fails: bool = False
    crashes: list[Postmortem] = field(default_factory=list[Postmortem])
    shutdowns: int = 0
    restarts: list[UpgradeRequest] = field(default_factory=list[UpgradeRequest])
    backend_list: list[BackendStatus] = field(default_factory=list[BackendStatus])
    registry_models: list[RegistryModel] = field(default_factory=list[RegistryModel])
    searched: list[tuple[str, RegistryName | None, int]] = field(
        default_factory=list[tuple[str, RegistryName | None, int]]
    )
    usage_rows: list[UsageRow] = field(default_factory=list[UsageRow])
    usage_asked: list[tuple[list[UsageGroup], str | None]] = field(
        default_factory=list[tuple[list[UsageGroup], str | None]]
    )
    failure: Exception | None = None
    """Raised by `daemon_status`."""
    events: Hub[Event] = field(default_factory=lambda: Hub[Event](100))
    job_changes: Hub[JobEvent] = field(default_factory=lambda: Hub[JobEvent](100))
    log: Hub[LogRecord] = field(default_factory=lambda: Hub[LogRecord](4))
    subscribers: int = 0

    def health(self) -> HealthAnswer:
        return self.health_answer

    def ready(self) -> Sequence[str]:
        return self.missing

    def daemon_status(self) -> DaemonStatus:
        if self.failure is not None:
            raise self.failure
        return DaemonStatus(
            version="0.1.0",
            pid=1,
            started_at=TIME,
            uptime_seconds=1.0,
            address="http://127.0.0.1:8000",
            socket="/run/control.sock",
            config_file=None,
            health="healthy",
            reasons=[],
            memory_limit=100,
            memory_used=10,
            in_flight=0,
            log_dropped=0,
            runtimes=[RUNTIME],
            jobs=[],
        )

    def runtimes(self) -> list[RuntimeStatus]:
        return [RUNTIME]

    def runtime(self, model: str) -> RuntimeStatus:
        if model != RUNTIME.id:
            raise ModelNotFound(f"no runtime {model}")
        return RUNTIME

    def postmortems(self, model: str | None = None) -> list[Postmortem]:
        return [one for one in self.crashes if model in {None, one.model}]

    async def read_header(self, model: str) -> None:
        pass

    def cache_stats(self) -> CacheStats:
        return CacheStats(0, 0, 0, 0, 0, 0, 0.0, 0)

    async def search_registries(self, query: str, *, registry: RegistryName | None, limit: int) -> list[RegistryModel]:
        self.searched.append((query, registry, limit))
        return self.registry_models[:limit]

    async def usage(self, group_by: Sequence[UsageGroup], *, since: str | None) -> list[UsageRow]:
        self.usage_asked.append((list(group_by), since))
        return self.usage_rows

    def clear_cache(self) -> int:
        return 3

    async def backends(self) -> list[BackendStatus]:
        return self.backend_list

    async def submit_job(self, request: JobRequest) -> Job:
        self.submitted.append(request)
        return msgspec.structs.replace(job("job_new"), type=request.type, params=request.params)

    async def jobs_known(self) -> None:
        pass

    def jobs(self) -> list[Job]:
        return self.job_list

    def job(self, job_id: str) -> Job:
        for item in self.job_list:
            if item.id == job_id:
                return item
        raise NotFound(f"there is no job {job_id}")

    def watch_job(self, job_id: str, after: int | None) -> AbstractContextManager[Subscription[JobEvent]]:
        return self._watching(JobEvent((after or 0) + 1, self.job(job_id)))

    @contextmanager
    def _watching(self, now: JobEvent) -> Generator[Subscription[JobEvent]]:
        with self._counted(self.job_changes) as subscription:
            subscription.put(now)
            yield subscription

    async def cancel_job(self, job_id: str) -> Job:
        found = self.job(job_id)
        if found.state == "succeeded":
            raise Conflict("it has ended")
        return msgspec.structs.replace(found, state="cancelling")

    def forget_job(self, job_id: str) -> None:
        self.job_list.remove(self.job(job_id))

    def subscribe_events(self) -> AbstractContextManager[Subscription[Event]]:
        return self._counted(self.events)

    def recent_logs(self, *, model: str | None, level: LogLevel) -> list[LogRecord]:
        levels = ["debug", "info", "warning", "error", "critical"]
        at_least = levels[levels.index(level) :]
        return [one for one in self.records if one.level in at_least and model in {None, one.model}]

    def subscribe_logs(self) -> AbstractContextManager[Subscription[LogRecord]]:
        return self._counted(self.log)

    def config_values(self) -> Iterator[ConfigValue]:
        yield ConfigValue(path="server.port", value=msgspec.Raw(b"8000"), layer="default", origin="default")

    def check_config(self, text: str, name: str) -> list[str]:
        self.checked.append((text, name))
        return self.problems

    async def reload_config(self) -> ReloadReport:
        if self.reload_fails:
            raise InvalidConfig("config.yaml:3: no")
        return ReloadReport(TIME, "request", "unchanged", "nothing changed")

    async def put_config(self, text: str) -> ReloadReport:
        self.put.append(text)
        return await self.reload_config()

    def restart(self, request: UpgradeRequest) -> UpgradeStatus:
        self.restarts.append(request)
        return UpgradeStatus("checking", len(self.restarts), len(self.restarts) - 1)

    def shutdown(self) -> None:
        self.shutdowns += 1

    def close(self) -> None:
        """End every feed, as the daemon does when it stops."""
        for hub in (self.events, self.job_changes, self.log):
            hub.close()

    @contextmanager
    def _counted(self, hub: Hub[T]) -> Generator[Subscription[T]]:
        with hub.subscribe() as subscription:
            self.subscribers += 1
            try:
                yield subscription
            finally:
                self.subscribers -= 1
