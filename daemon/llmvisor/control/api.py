"""The Structs that the daemon and `llmctl` share: what the management paths answer. Imports msgspec alone."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelState = Literal["not_loaded", "loading", "loaded", "busy", "draining", "unloading", "error", "unavailable"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
JobType = Literal["load", "unload"]
JobState = Literal["queued", "running", "cancelling", "cancelled", "succeeded", "failed"]


class ErrorBody(msgspec.Struct, omit_defaults=False):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(msgspec.Struct):
    """Every error, on every path."""

    error: ErrorBody


class ProgressStatus(msgspec.Struct, frozen=True):
    """How far a load is; `total` 0 while unknown."""

    stage: str
    done: int
    total: int
    unit: str


class ModelStatus(msgspec.Struct, frozen=True):
    """A model, and what is known of it at the moment. Times are ISO 8601 in UTC, sizes bytes."""

    id: str
    """`tier/name`, or `name` without a tier."""
    name: str
    tier: str | None
    aliases: list[str]
    service: str
    backend: str
    state: ModelState
    type: str = "llm"
    """llm | vlm | embeddings | reranker | unknown"""
    path: str | None = None
    size: int | None = None
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    """As trained."""
    n_ctx: int | None = None
    """As loaded, or as configured."""
    capabilities: list[str] = []
    chat_template_sha256: str | None = None
    memory_estimated: int | None = None
    loaded_at: str | None = None
    created: int = 0
    """Unix seconds: the file's own date."""
    error: str | None = None
    embedding_dimension: int | None = None
    """Vectors are cut to so many numbers where a request does not say."""
    pinned: bool = False
    preload: bool = False


class RuntimeStatus(msgspec.Struct, frozen=True):
    """A worker process, or the place where one will be. One for each model."""

    id: str
    """The model's name."""
    model: str
    tier: str | None
    backend: str
    state: ModelState
    since: str
    """When the state was entered."""
    pid: int | None = None
    phase: str | None = None
    restarts: int = 0
    """Restarts after a crash, since the daemon started."""
    memory: int | None = None
    """RSS of the worker, bytes."""
    slots: int = 0
    slots_busy: int = 0
    queued: int = 0
    threads: int | None = None
    """That it computes with; None before its first request."""
    tokens_per_second: float = 0.0
    idle_left_seconds: float | None = None
    """Until it is unloaded for idleness; None = never, or in use."""
    progress: ProgressStatus | None = None
    error: str | None = None
    """Why it is in `error` or `unavailable`."""
    retry_in_seconds: float | None = None
    """Until the next start after a crash."""
    last_lines: list[str] = []
    """The last lines of stderr of the worker that crashed."""
    backend_version: str | None = None
    load_seconds: float | None = None


class BackendProbe(msgspec.Struct, frozen=True):
    """What `python -m llmvisor_runtimes.probe` prints."""

    protocol_version: int | None = None
    version: str | None = None
    devices: list[str] = []
    missing: bool = False
    """Its engine, or the backend itself, is not installed."""
    error: str | None = None


class BackendStatus(msgspec.Struct, frozen=True):
    """A backend, and whether its engine can be used."""

    name: str
    python: str
    """The interpreter of its workers."""
    installed: bool
    usable: bool
    version: str | None = None
    """The engine's."""
    protocol_version: int | None = None
    devices: list[str] = []
    error: str | None = None
    hint: str | None = None
    """What to do about the error."""


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


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /jobs`."""

    type: JobType
    params: JobParams
    idempotency_key: str | None = None


class JobParams(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    force: bool = False
    """For `unload`: do not wait for the requests that run."""
    restart: bool = False
    """For `load`: unload first, and forget earlier crashes."""


class Job(msgspec.Struct, frozen=True):
    """A long operation. Ended jobs are kept for a while."""

    id: str
    type: JobType
    params: JobParams
    state: JobState
    progress: float
    """0–1."""
    stage: str
    done: int
    total: int
    unit: str
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    error: str | None = None
    error_code: str | None = None


class ListAnswer(msgspec.Struct):
    """What list calls answer; `data` holds the objects."""

    data: list[msgspec.Raw]
    object: str = "list"
    next_cursor: str | None = None
    """`cursor` of the next page; None on the last."""


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
    kind: Literal["runtime", "job", "daemon"]
    runtime: RuntimeStatus | None = None
    job: Job | None = None
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


class HealthAnswer(msgspec.Struct, omit_defaults=True):
    """`GET /health`."""

    status: str
    timestamp: str
    reasons: list[str] = []
