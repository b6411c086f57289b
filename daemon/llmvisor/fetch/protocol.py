"""What the daemon and its fetch process say to each other: one JSON request on stdin, JSON lines on stdout.

The request's line is the first on stdin; the end of stdin means that the daemon is gone, and the process ends. SIGTERM
ends it as well. Either way what it has fetched stays in the staging folder. The last line on stdout is a `Fetched`, an
`Unchanged`, a `Found` or a `FetchFailure`; without one the process has crashed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmvisor.control.api import FoundModel

Source = str
"""`starter`, `hf:org/repo[:file]`, `ollama:name[:tag]`, or `file:/absolute/path` of a file or folder."""
FailureKind = Literal["not_found", "forbidden", "network", "no_space", "wrong_checksum", "refused", "invalid", "disk"]
"""`refused`: what is there must not be taken (pickles, links out, names with `..`)."""
RETRYABLE: frozenset[FailureKind] = frozenset({"network"})


class FetchRequest(msgspec.Struct, tag="fetch", forbid_unknown_fields=True):
    """Bring one model into the staging folder, or go on with it."""

    source: Source
    staging: str
    """An existing folder, which belongs to this fetch alone. Files of an earlier try may lie in it."""
    quantization: str | None = None
    """Of a GGUF repository; None takes the default, Q4_K_M or the nearest."""
    mode: Literal["copy", "move", "link"] = "copy"
    """For `file:`."""
    known_revision: str | None = None
    """Answer `Unchanged` where the source still has this one."""
    connections: int = 4
    """For one large file."""
    bytes_per_second_max: int = 0
    """All connections together; 0 = no bound."""
    huggingface_endpoint: str | None = None
    ollama_registry: str = "https://registry.ollama.ai"
    trust_remote_code: bool = False


class SearchRequest(msgspec.Struct, tag="search", forbid_unknown_fields=True):
    """Look for models by words."""

    query: str
    registry: Literal["huggingface", "ollama"]
    limit: int = 20
    huggingface_endpoint: str | None = None
    ollama_library: str = "https://ollama.com"


class FetchProgress(msgspec.Struct, tag="progress"):
    """At most ten a second."""

    stage: str
    """What a person reads: `resolving`, `downloading`, `verifying`, `copying`."""
    bytes_done: int = 0
    """Of all files, those of earlier tries included."""
    bytes_total: int = 0
    """0 while unknown."""
    file: str = ""
    """The one under way, relative to the staging folder."""
    files_done: int = 0
    files_total: int = 0


class FetchedFile(msgspec.Struct, frozen=True):
    path: str
    """Relative, with `/`."""
    size: int
    sha256: str


class Fetched(msgspec.Struct, tag="fetched", frozen=True):
    """Everything lies in the staging folder under its own name, whole, checked and synced to the disk.

    It is what `manifest.json` of an installed model holds, too.
    """

    source: Source
    """As it can be fetched again: with the file or tag that was chosen."""
    revision: str
    """A commit, a manifest's digest, a checksum: changes when the content does. Letters, digits, `-` and `_`."""
    files: list[FetchedFile]
    main: str
    """The file that a backend is given; empty where it is the whole folder."""
    name: str
    """What the model might be called: `[a-z0-9][a-z0-9._-]{0,99}`."""
    tier: str | None = None
    publisher: str | None = None
    description: str | None = None
    options: dict[str, msgspec.Raw] = {}
    """The backend's options that come with it: a chat template, adapters and mmproj as paths relative to the folder."""
    sampling: dict[str, float | int | str] = {}
    """`temperature`, `top_p`, … and `n_ctx` by the configuration's names, where the source says them."""
    linked_to: str | None = None
    """`mode: link`: where the files really are; `files` then names them, and nothing of it is ever deleted."""


class Unchanged(msgspec.Struct, tag="unchanged", frozen=True):
    revision: str


class Found(msgspec.Struct, tag="found"):
    models: list[FoundModel]


class FetchFailure(msgspec.Struct, tag="failed"):
    kind: FailureKind
    message: str
    hint: str
    """The next step a person can take."""
    retry_after_seconds: float | None = None
    """What the server asked for."""


Request = FetchRequest | SearchRequest
Report = FetchProgress | Fetched | Unchanged | Found | FetchFailure
