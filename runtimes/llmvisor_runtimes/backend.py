"""The interface that every backend implements, and what it may assume of the host that drives it.

Three threads call a backend. The *engine* thread is the process's main thread: it alone calls `load`, `generate`,
`encode`, `step`, `delay_seconds` and `close`. The *prompt* thread calls `tokenize`, `constraint`, `prepare`,
`detokenize` and `apply_template`, so that a long prompt holds up nobody's decoding. The *reader* thread calls `cancel`,
`pause`, `resume` and `set_threads`, and the *tick* thread `progress`: those only set or read plain values.

`Backend` is what all of them have. What only some can do stands in protocols of its own (`Constrains`, `Resumes`,
`Encodes`, `SharesCores`): the host asks with `isinstance`, and refuses what a backend does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Embed,
    FailureKind,
    Generate,
    Load,
    ModelInfo,
    Phase,
    Prompt,
    Report,
    Score,
)
from llmvisor_runtimes.structured import Constraint

ENTRY_POINT_GROUP = "llmvisor.runtimes"
"""Where backends are found by name: `llamacpp = "llmvisor_runtimes.llamacpp:LlamaCppBackend"`."""


class LoadError(Exception):
    """A model cannot be loaded; `permanent` where the same file and options can never load."""

    def __init__(self, reason: str, *, permanent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


class RequestError(Exception):
    """One request cannot be served; the others go on."""

    def __init__(self, kind: FailureKind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.param = param


class Progress(msgspec.Struct, frozen=True):
    """What a tick tells: see `protocol.Tick`. `tokens` counts from the start of the process."""

    step: int
    phase: Phase
    active: int = 0
    waiting: int = 0
    tokens: int = 0
    kv_used: int = 0


LoadProgressCallback = Callable[[str, int, int, Literal["bytes", "layers", "steps"]], None]
"""Called with stage, done, total (0 while unknown) and unit."""


class Backend(Protocol):
    """One model in one process."""

    name: str

    def version(self) -> str:
        """The engine's version, found without importing the engine."""
        ...

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        """Load the model. Raises `LoadError`."""
        ...

    def tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        """A prompt's token ids; a `ChatPrompt` is rendered first. Raises `RequestError`.

        Places of images and sounds are negative numbers, whose meaning is the backend's own: `generate` gets the very
        list that this gave.
        """
        ...

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        """The text of token ids, and the bytes of each. Raises `RequestError` for an id out of range."""
        ...

    def apply_template(self, prompt: ChatPrompt) -> str:
        """A conversation as the text that the model reads. Raises `RequestError`."""
        ...

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        """Take a request in; its deltas come out of `step`. Raises `RequestError`.

        Where `request.resumed` says so (to a backend that `Resumes` alone) nothing that was sent comes again.
        """
        ...

    def step(self) -> list[Report]:
        """Do one step of work for every sequence, and give what it brought (mostly one `Step`)."""
        ...

    def delay_seconds(self) -> float | None:
        """How long `step` has nothing to do: 0 = call it now; None = until the next request."""
        ...

    def cancel(self, id: int) -> None:
        """End a request within one step: `step` gives its last deltas (`cancelled`) and `Done`. Ignores unknown ids."""
        ...

    def pause(self, id: int) -> None:
        """Decode no more for this request until `resume`."""
        ...

    def resume(self, id: int) -> None: ...

    def progress(self) -> Progress: ...

    def close(self) -> None:
        """Free the model."""
        ...


@runtime_checkable
class Constrains(Protocol):
    """A backend whose texts can be held to a grammar."""

    def constraint(self, request: Generate) -> Constraint | None:
        """What the text of a request has to be: its own grammar, or the one that its tools call for.

        None where it is free. Raises `RequestError` for a grammar that cannot be compiled.
        """
        ...


@runtime_checkable
class Resumes(Protocol):
    """A backend that goes on with what another worker began: it knows `Generate.resumed`."""

    resumes: Literal[True]


@runtime_checkable
class Encodes(Protocol):
    """A backend that gives embeddings or scores of pairs. What it cannot give it refuses with `RequestError`."""

    def prepare(self, request: Embed | Score) -> object:
        """Tokenize a request, in a form that `encode` knows. Raises `RequestError`, for texts that are too long too."""
        ...

    def encode(self, request: Embed | Score, prepared: object) -> None:
        """Take a request in; its `Embeddings` or `Scores` come out of `step`.

        A request that is cancelled gets no answer but an empty last one. Raises `RequestError`.
        """
        ...


@runtime_checkable
class Trims(Protocol):
    """A backend that keeps something only to be faster."""

    def trim(self) -> None:
        """Give it up: memory runs low. The engine's thread calls this."""
        ...


@runtime_checkable
class JoinsPieces(Protocol):
    """A backend that can `prepare` a large request bit by bit, each bit a request for some of the texts."""

    def join(self, pieces: Sequence[object]) -> object:
        """What `prepare` would have given for the whole, from what it gave for the pieces in order."""
        ...


@runtime_checkable
class SharesCores(Protocol):
    """A backend that can change how many threads it computes with."""

    def set_threads(self, count: int) -> None:
        """Use so many from the next step on."""
        ...


@runtime_checkable
class HasDevices(Protocol):
    """A backend that can tell what it would compute with."""

    def devices(self) -> list[str]:
        """`cpu`, `cuda:0 NVIDIA …`, `metal`, …; imports the engine."""
        ...
