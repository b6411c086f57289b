"""The daemon itself: its health, its cache, its configuration, its log."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmvisor.control.api.config import ConfigStatus, ReloadReport
from llmvisor.control.api.jobs import Job
from llmvisor.control.api.models import RuntimeStatus

LogLevel = Literal["debug", "info", "warning", "error", "critical"]


class CacheStats(msgspec.Struct, frozen=True):
    """`GET /internal/cache/stats`."""

    entries: int
    size_bytes: int
    hits: int
    misses: int
    coalesced: int
    """Requests that shared another one's run."""
    evictions: int
    hit_rate: float
    """Of all requests that could be cached, coalesced ones counted as hits; 0 to 1."""
    persisted_entries: int


class CacheCleared(msgspec.Struct, frozen=True):
    """`POST /internal/cache/clear`."""

    cleared: int
    """Answers that were kept."""


UpgradeState = Literal["none", "checking", "waiting", "failed"]


class UpgradeStatus(msgspec.Struct, frozen=True):
    """How the last upgrade in place fares. One that has succeeded shows as `none`, and in `completed`."""

    state: UpgradeState = "none"
    """checking: the new program is tried; waiting: requests and loads finish first; failed: the old one goes on."""
    attempts: int = 0
    """How often this process was asked to upgrade."""
    completed: int = 0
    """How often it did."""
    reason: str | None = None
    """What it waits for, or why it failed."""


class UpgradeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /restart`."""

    timeout_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    """How long to wait for all that runs; None takes `server.upgrade_timeout`."""
    force: bool = False
    """End what still runs then with an error, rather than give the upgrade up."""


class DaemonStatus(msgspec.Struct, frozen=True):
    """`GET /llm/status`: all that `llmctl status` shows, in one answer."""

    version: str
    pid: int
    started_at: str
    uptime_seconds: float
    address: str
    """`http://127.0.0.1:8000`, or empty while nothing is bound."""
    socket: str
    config_file: str | None
    health: str
    """healthy | degraded | unhealthy"""
    reasons: list[str]
    memory_limit: int
    memory_used: int
    """By the workers together."""
    in_flight: int
    log_dropped: int
    runtimes: list[RuntimeStatus]
    jobs: list[Job]
    upgrade: UpgradeStatus = UpgradeStatus()
    config: ConfigStatus = ConfigStatus()
    """How what holds compares with what the files say."""


class UsageRow(msgspec.Struct, frozen=True):
    """`GET /usage`: requests that ended, summed up by what was asked."""

    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    """The mean of those that had one."""
    total_ms: float
    """The mean."""
    cost: float
    model: str | None = None
    day: str | None = None
    service: str | None = None
    tier: str | None = None
    key: str | None = None
    """The name of the API key; None for requests without one."""


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the log. `model` is set on what a worker said, or what was said of one."""

    time: str
    level: LogLevel
    module: str
    message: str
    model: str | None = None
    request_id: str | None = None
    fields: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """A state change, on `GET /events`."""

    time: str
    kind: Literal["runtime", "job", "daemon", "config"]
    runtime: RuntimeStatus | None = None
    job: Job | None = None
    config: ReloadReport | None = None
    message: str | None = None


class ConfigValue(msgspec.Struct, frozen=True):
    """One effective value and who set it. Secrets show as `****`."""

    path: str
    """`models.light.n_ctx`"""
    value: msgspec.Raw
    layer: str
    """default | file | dotenv | environment | flag"""
    origin: str
    """`config.yaml:14`, `PORT`, `--port`, or `default`."""


class ConfigCheckAnswer(msgspec.Struct, frozen=True):
    """`POST /config/check`."""

    valid: bool
    problems: list[str]


class HealthAnswer(msgspec.Struct, omit_defaults=True):
    """`GET /health`."""

    status: str
    timestamp: str
    reasons: list[str] = []
