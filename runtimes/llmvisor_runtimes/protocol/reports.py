"""What a worker sends to the daemon."""

from __future__ import annotations

from typing import Literal

from llmvisor_runtimes.protocol.parts import (
    FailureKind,
    FinishReason,
    Frame,
    Phase,
)


class Confined(Frame, frozen=True):
    """What a worker has given up before it reads a model."""

    in_force: list[str] = []
    """`no_new_privs`, `capabilities`, `processes`, `landlock 7`, `seccomp`; `sandbox` on macOS."""
    missing: list[str] = []
    """What the system does not have, each with the reason."""


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame of a worker."""

    protocol_version: int
    backend: str
    backend_version: str
    pid: int
    confined: Confined | None = None
    """None: it was not asked to."""


class LoadProgress(Frame, frozen=True, tag="load_progress"):
    """How far a load is, `total` 0 while unknown."""

    stage: str
    done: int
    total: int
    unit: Literal["bytes", "layers", "steps"]


class Memory(Frame, frozen=True):
    """Bytes that a model takes."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0


class ModelInfo(Frame, frozen=True):
    """What a loaded model is."""

    architecture: str
    parameters: int
    quantization: str
    context_length: int
    """Tokens the model was trained for."""
    n_ctx: int
    """Tokens of context of one sequence as loaded."""
    slots: int
    """Sequences that decode together."""
    vocabulary: int
    capabilities: list[str]
    """Of `chat`, `completions`, `tokenize`, `tools`, `structured_output`, `infill`, `adapters`, `vision`, `audio`,
    `embedding`, `sparse`, `colbert`, `rerank`."""
    memory: Memory
    load_seconds: float
    backend: str
    backend_version: str
    embedding_dimension: int = 0
    chat_template_sha256: str | None = None


class Loaded(Frame, frozen=True, tag="loaded"):
    info: ModelInfo


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    """The model cannot be loaded. `permanent`: trying again with the same file and options is of no use."""

    reason: str
    permanent: bool


class TopLogprob(Frame, frozen=True, array_like=True):
    token: int
    piece: bytes
    logprob: float


class TokenLogprob(Frame, frozen=True, array_like=True):
    token: int
    piece: bytes
    """The token's own bytes, which may be a part of a character."""
    logprob: float | None
    """None for the first token of an echoed prompt, which nothing predicts."""
    top: list[TopLogprob]


class ToolCallDelta(Frame, frozen=True, array_like=True):
    """More of one tool call: the first of an index brings its id and name, each a piece of its arguments."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Delta(Frame, frozen=True, array_like=True):
    """New text of one choice. Text is whole characters and may lag behind `tokens` (stop strings, cut UTF-8)."""

    id: int
    index: int
    text: str
    tokens: list[int]
    """The ids emitted since the last delta, prompt tokens of an echo included."""
    finish: FinishReason | None = None
    """Set in the last delta of a choice."""
    logprobs: list[TokenLogprob] = []
    reasoning: str = ""
    """New text of the part in which the model thinks."""
    tool_calls: list[ToolCallDelta] = []


class Done(Frame, frozen=True, array_like=True):
    """All choices of a request have ended; nothing more comes for its id."""

    id: int
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again."""
    completion_tokens: int
    """Over all choices."""
    prompt_ms: float
    """From the first prompt token computed to the first token sampled."""
    predicted_ms: float
    """From there to the end."""
    drafted_tokens: int = 0
    """Tokens that were guessed ahead."""
    accepted_tokens: int = 0
    """Of these, the ones that were right."""
    resumed: int = 0
    """How often it went on in another worker; filled in by the daemon."""


class Embedding(Frame, frozen=True, array_like=True):
    """The vectors of one text, of the kinds that were asked for. Floats are little-endian float32."""

    tokens: int
    """Tokens computed, special ones included."""
    dense: bytes = b""
    sparse: dict[int, float] = {}
    """Weight by token id."""
    colbert: bytes = b""
    """One vector after another."""
    colbert_vectors: int = 0


class Embeddings(Frame, frozen=True, tag="embeddings"):
    """The embeddings of the inputs from number `first` on; the request ends with the frame that is `last`."""

    id: int
    first: int
    items: list[Embedding]
    last: bool


class Scores(Frame, frozen=True, tag="scores"):
    """One raw score (a logit) for each pair."""

    id: int
    scores: list[float]
    tokens: int
    """Of all pairs, special ones included."""


class Step(Frame, frozen=True, tag="step"):
    """What one engine step gave, for every sequence together, in one write."""

    deltas: list[Delta]
    done: list[Done] = []


class Failed(Frame, frozen=True, tag="failed"):
    """A request or call that gives no (further) answer; the worker itself is well."""

    id: int
    kind: FailureKind
    message: str
    param: str | None = None


class Tokens(Frame, frozen=True, tag="tokens"):
    id: int
    tokens: list[int]
    """-1 for each place of an image or sound."""
    pieces: list[bytes]
    """The bytes of each token."""


class Text(Frame, frozen=True, tag="text"):
    id: int
    text: str


class Tick(Frame, frozen=True, tag="tick"):
    """Progress, each second, from a thread that the engine cannot hold up."""

    step: int
    """Counts engine steps, and load progress while `phase` is `load`."""
    phase: Phase
    active: int
    """Sequences that have a slot."""
    waiting: int
    tokens: int
    """Tokens computed or sampled since the last tick."""
    rss_bytes: int
    kv_used: int = 0
    """Cells of the context in use, idle cache included."""


Report = Hello | LoadProgress | Loaded | LoadFailed | Step | Failed | Tokens | Text | Embeddings | Scores | Tick
