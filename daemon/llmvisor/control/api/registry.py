"""Models that are kept, and models that can be had."""

from __future__ import annotations

from typing import Literal

import msgspec


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
