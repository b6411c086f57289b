"""What the management paths ask of the daemon: implemented once, in `app.py`, and faked in tests of the HTTP layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from llmvisor.broadcast import Subscription
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
    Postmortem,
    RegistryModel,
    ReloadReport,
    RuntimeStatus,
    UpgradeRequest,
    UpgradeStatus,
    UsageRow,
)
from llmvisor.jobs.history import JobEvent
from llmvisor.models.registry import RegistryName
from llmvisor.store.usage import UsageGroup


class Control(Protocol):
    """The daemon as its management sees it. Names of models are resolved already; others raise `ModelNotFound`."""

    def health(self) -> HealthAnswer:
        """healthy | degraded (a pinned or preloaded model is down) | unhealthy (draining)."""
        ...

    def ready(self) -> Sequence[str]:
        """What is still missing before every `preload` model is ready; empty = ready."""
        ...

    def daemon_status(self) -> DaemonStatus: ...

    def runtimes(self) -> list[RuntimeStatus]: ...

    def runtime(self, model: str) -> RuntimeStatus: ...

    def postmortems(self, model: str | None = None) -> list[Postmortem]:
        """The last crashes since the daemon started, newest first; of one model or of all."""
        ...

    async def read_header(self, model: str) -> None:
        """Look into a model's file, so that what it says is known although nobody has loaded it."""
        ...

    def cache_stats(self) -> CacheStats: ...

    async def usage(self, group_by: Sequence[UsageGroup], *, since: str | None) -> list[UsageRow]:
        """What requests took, summed up from this day on. Raises `StoreUnavailable`."""
        ...

    async def search_registries(self, query: str, *, registry: RegistryName | None, limit: int) -> list[RegistryModel]:
        """What can be installed, of one registry or of all. Raises an `LlmvisorError` where none can be asked."""
        ...

    def clear_cache(self) -> int:
        """Forget every cached answer; gives how many there were."""
        ...

    async def backends(self) -> list[BackendStatus]:
        """Every backend, each imported anew in a process of its own."""
        ...

    async def submit_job(self, request: JobRequest) -> Job:
        """Begin a job, or give the one that does the same work already. Raises an `LlmvisorError`."""
        ...

    async def jobs_known(self) -> None:
        """Wait until the jobs of the last run are known. Raises `StoreUnavailable` where that takes too long."""
        ...

    def jobs(self) -> list[Job]:
        """Newest first, ended ones included for a while."""
        ...

    def job(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        ...

    def watch_job(self, job_id: str, after: int | None) -> AbstractContextManager[Subscription[JobEvent]]:
        """How a job is and every change, or all changes after the event of this number; over when it has ended.

        Raises `NotFound`.
        """
        ...

    async def cancel_job(self, job_id: str) -> Job:
        """Raises `NotFound`; `Conflict` if it has ended."""
        ...

    def forget_job(self, job_id: str) -> None:
        """Raises `NotFound`; `Conflict` while it runs."""
        ...

    def subscribe_events(self) -> AbstractContextManager[Subscription[Event]]: ...

    def recent_logs(self, *, model: str | None, level: LogLevel) -> list[LogRecord]:
        """Lines kept in memory, of this level or above."""
        ...

    def subscribe_logs(self) -> AbstractContextManager[Subscription[LogRecord]]:
        """Every line from now on, of all models and levels."""
        ...

    def config_values(self) -> Iterator[ConfigValue]: ...

    async def reload_config(self) -> ReloadReport:
        """Read the configuration now. Raises `InvalidConfig`, `ReloadFailed`; what ran goes on then."""
        ...

    async def put_config(self, text: str) -> ReloadReport:
        """Make this the text of the configuration file. Raises as `reload_config`, and `Conflict` without a file."""
        ...

    def check_config(self, text: str, name: str) -> list[str]:
        """What is wrong with a configuration file's text; `name` stands in the messages. Empty = it can be used."""
        ...

    def restart(self, request: UpgradeRequest) -> UpgradeStatus:
        """Begin an upgrade in place. Raises `Conflict` where one is under way."""
        ...

    def shutdown(self) -> None:
        """Drain and stop, as SIGTERM does."""
        ...
