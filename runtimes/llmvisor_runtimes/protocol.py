"""The frames between the daemon and one worker: tagged Structs in length-prefixed MessagePack.

A frame is a 4-byte little-endian length, then that many bytes of MessagePack holding one Struct. The daemon sends
`Command`s, the worker sends `Report`s. `framing.py` cuts and decodes them, and turns every way in which bytes can be
wrong into one `ProtocolViolation`.

The order of a worker's life: `Hello`, then for one `Load` any `LoadProgress` and one `Loaded` or `LoadFailed`,
then `Step`, `Failed`, `Tokens` and `Text` for the requests, with a `Tick` each second all along.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL_VERSION = 1

Phase = Literal["start", "load", "idle", "prefill", "decode"]
"""What a worker's engine does at the moment. `prefill` and `decode` are busy: their step number has to move on."""

FinishReason = Literal["stop", "length", "cancelled"]

FailureKind = Literal[
    "invalid_value", "context_length_exceeded", "unsupported_operation", "template_error", "internal_error"
]


class ProtocolViolation(Exception):
    """The peer sent bytes that are no frame: too long, cut, of unknown tag, wrong type, or not decodable."""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of everything that crosses the pipes."""


# ---------------------------------------------------------------------------------------------- parts of requests


class ChatMessage(Frame, frozen=True):
    """One message of a conversation, content already flattened to text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None


class TextPrompt(Frame, frozen=True, tag="text"):
    """Plain text, tokenized with the model's own leading token where it has one."""

    text: str


class TokenPrompt(Frame, frozen=True, tag="tokens"):
    """Token ids, taken as they are."""

    tokens: list[int]


class ChatPrompt(Frame, frozen=True, tag="chat"):
    """A conversation that the worker renders with the model's chat template."""

    messages: list[ChatMessage]
    add_generation_prompt: bool = True
    template_kwargs: bytes = b"{}"
    """A JSON object of extra template variables."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class Sampling(Frame, frozen=True):
    """How the next token is chosen, llama.cpp's names and meanings. A temperature of 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    """0 considers every token."""
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Tokens back that penalties look at; 0 = none, -1 = the whole context."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    """Choice i of a request samples with seed + i; None takes a fresh one."""
    logit_bias: dict[int, float] = {}


class ModelOptions(Frame, frozen=True):
    """How a model is loaded, already checked by the daemon."""

    n_ctx: int = 8192
    """Tokens of context for all sequences together."""
    n_batch: int = 512
    n_threads: int = 0
    """0 leaves the number to the backend."""
    n_gpu_layers: int = -1
    parallel: int = 4
    use_mmap: bool = True
    use_mlock: bool = False
    options: dict[str, msgspec.Raw] = {}
    """MessagePack values by name, which the backend decodes into its own Struct."""


# ----------------------------------------------------------------------------------------------- daemon → worker


class Load(Frame, frozen=True, tag="load"):
    """Load this model; sent once, first."""

    model: str
    """The model's name, for log lines."""
    path: str
    """The model's file or folder; empty where the backend needs none."""
    options: ModelOptions


class Generate(Frame, frozen=True, tag="generate"):
    """Continue a prompt `n` times. `id` is never used twice in one worker."""

    id: int
    request_id: str
    """The X-Request-Id, for log lines."""
    prompt: Prompt
    sampling: Sampling
    n: int = 1
    max_tokens: int | None = None
    """Tokens of each choice; None goes on until the context is full."""
    stop: list[str] = []
    logprobs: int | None = None
    """None = none; else this many alternatives beside each chosen token."""
    echo: bool = False
    """The prompt itself comes first in each choice (with its log-probabilities where they are asked for)."""
    ignore_eos: bool = False
    cache_prompt: bool = True


class Cancel(Frame, frozen=True, tag="cancel"):
    """Stop this request within one step; answered by its `Done`, or nothing if it has ended already."""

    id: int


class Pause(Frame, frozen=True, tag="pause"):
    """Decode no more for this request until `Resume`: its reader is slow."""

    id: int


class Resume(Frame, frozen=True, tag="resume"):
    id: int


class Tokenize(Frame, frozen=True, tag="tokenize"):
    """Answered by `Tokens`."""

    id: int
    prompt: Prompt
    add_special: bool = True
    parse_special: bool = True
    """Whether text such as `<|im_end|>` becomes the special token."""


class Detokenize(Frame, frozen=True, tag="detokenize"):
    """Answered by `Text`."""

    id: int
    tokens: list[int]


class ApplyTemplate(Frame, frozen=True, tag="apply_template"):
    """Render a conversation without running it; answered by `Text`."""

    id: int
    prompt: ChatPrompt


class Close(Frame, frozen=True, tag="close"):
    """Free everything and exit 0."""


Command = Load | Generate | Cancel | Pause | Resume | Tokenize | Detokenize | ApplyTemplate | Close


# ----------------------------------------------------------------------------------------------- worker → daemon


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame of a worker."""

    protocol_version: int
    backend: str
    backend_version: str
    pid: int


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
    """Of `chat`, `completions`, `tokenize`, …"""
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


Report = Hello | LoadProgress | Loaded | LoadFailed | Step | Failed | Tokens | Text | Tick
