"""Models, their runtimes and their backends."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelState = Literal["not_loaded", "loading", "loaded", "busy", "draining", "unloading", "error", "unavailable"]


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
    """What its next load is taken to need: by earlier loads where there were some, else by its file."""
    memory_measured: int | None = None
    """The most that workers have taken with these options."""
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
    sandbox: list[str] | None = None
    """What holds the worker back: `no_new_privs`, `landlock 7`, `seccomp`, …; None = nothing, or there is no worker."""
    sandbox_missing: list[str] = []
    """What the system does not have of it, each with the reason."""


class Confinement(msgspec.Struct, frozen=True):
    """What `python -m llmvisor_runtimes.confinement` prints."""

    in_force: list[str] = []
    missing: list[str] = []
    """What the system does not have, each with the reason."""


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
