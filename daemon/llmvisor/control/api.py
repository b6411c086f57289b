"""The Structs that the daemon and `llmctl` share: what the management paths answer. Imports msgspec alone."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelState = Literal["not_loaded", "loading", "loaded", "busy", "draining", "unloading", "error", "unavailable"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
JobType = Literal["install", "import", "load", "unload", "update", "delete"]
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
    capabilities_expected: list[str] = []
    """What its file promises, as long as no worker has told `capabilities`."""
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
    source: str | None = None
    """Where it was installed from; None for what only the configuration names."""
    revision: str | None = None


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


class CacheCleared(msgspec.Struct, frozen=True):
    """`POST /internal/cache/clear`."""

    cleared: int
    """Answers that were kept."""


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
    """What a job is told; each type takes its own."""

    model: str = ""
    """For all but `install` and `import`. After an installation: what was installed."""
    force: bool = False
    """For `unload` and `delete`: do not wait for the requests that run."""
    restart: bool = False
    """For `load`: unload first, and forget earlier crashes."""
    source: str | None = None
    """For `install`: `starter`, `hf:org/repo[:file]`, `ollama:name[:tag]`."""
    path: str | None = None
    """For `import`: the absolute path of a file or folder."""
    mode: Literal["copy", "move", "link"] = "copy"
    """For `import`."""
    name: str | None = None
    """For `install` and `import`: what to call the model; else by its source."""
    tier: str | None = None
    quantization: str | None = None
    rollback: bool = False
    """For `update`: go back to the revision before."""


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
    hint: str | None = None
    """What to do about the error."""
    attempts: int = 0
    """Tries so far."""
    retry_at: str | None = None
    """When it is tried again."""
    bytes_per_second: float = 0.0
    result: str | None = None
    """What came of it, in a sentence: the bytes that were freed, the revision."""


class InstalledModel(msgspec.Struct, frozen=True):
    """A model that llmvisor keeps: a row of `llm_models` with `service` local, and its manifest."""

    name: str
    source: str
    """What `install` was given, with the file or tag that was chosen."""
    revision: str
    path: str
    """What the backend is given."""
    folder: str
    """Of this revision."""
    size: int
    """Bytes on disk, of this revision."""
    sha256: str | None
    """Of the main file."""
    backend: str
    type: str
    installed_at: str
    tier: str | None = None
    previous_revision: str | None = None
    """Kept until this one has loaded once; `llmctl models rollback` goes back to it."""
    has_loaded: bool = False
    linked: bool = False
    """The files are somewhere else, and stay there whatever becomes of the model."""
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    publisher: str | None = None
    description: str | None = None
    modified_at: str | None = None
    capabilities: list[str] = []


class FoundModel(msgspec.Struct, frozen=True):
    """One hit of a search; a row of `llm_registry_models`."""

    registry: Literal["huggingface", "ollama"]
    id: str
    """`org/repo`, `name`."""
    source: str
    """What `llmctl install` takes."""
    description: str | None = None
    publisher: str | None = None
    likes: int | None = None
    trending_score: float | None = None
    downloads: int | None = None
    created_at_ms: int | None = None
    modified_at: str | None = None
    tags: list[str] = []
    url: str | None = None
    size: int | None = None
    """Bytes of what would be installed by default, where the registry says it."""
    parameters: int | None = None
    is_gguf: bool = False
    is_mlx: bool = False
    gated: bool = False


class RegistryModel(FoundModel, frozen=True):
    """A hit of `GET /llm/registry/models`."""

    fits: bool | None = None
    """Whether it fits in this machine's memory budget; None where its size is not known."""
    fetched_at: str = ""


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


class ConfigCheckAnswer(msgspec.Struct, frozen=True):
    """`POST /config/check`."""

    valid: bool
    problems: list[str]


class HealthAnswer(msgspec.Struct, omit_defaults=True):
    """`GET /health`."""

    status: str
    timestamp: str
    reasons: list[str] = []
