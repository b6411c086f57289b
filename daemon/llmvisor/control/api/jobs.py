"""Long operations."""

from __future__ import annotations

from typing import Literal

import msgspec

JobType = Literal["install", "import", "load", "unload", "update", "delete"]
JobState = Literal["queued", "running", "cancelling", "cancelled", "succeeded", "failed"]


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
