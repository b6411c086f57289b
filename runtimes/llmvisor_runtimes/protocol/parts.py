"""What commands and reports are made of."""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL_VERSION = 3

Phase = Literal["start", "load", "idle", "prefill", "decode"]
"""What a worker's engine does at the moment. `prefill` and `decode` are busy: their step number has to move on."""

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

EmbeddingKind = Literal["dense", "sparse", "colbert"]

Lane = Literal["interactive", "bulk"]
"""A few texts that somebody waits for go ahead of many."""

MEDIA_MARKER = "<__media__>"
"""Stands in a message's content where an image or a sound belongs; libmtmd's default marker."""

FailureKind = Literal[
    "invalid_value", "context_length_exceeded", "unsupported_operation", "template_error", "internal_error"
]


class ProtocolViolation(Exception):
    """The peer sent bytes that are no frame: too long, cut, of unknown tag, wrong type, or not decodable."""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of everything that crosses the pipes."""


class ToolCall(Frame, frozen=True):
    """A call that the model made in an earlier turn."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


class ChatMessage(Frame, frozen=True):
    """One message of a conversation, content already flattened to text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    reasoning: str | None = None
    """What an assistant thought before its answer."""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    """Which call a tool message answers."""
    media: list[bytes] = []
    """Files of images and sounds, in the order of the `MEDIA_MARKER`s in `content`."""


class Tool(Frame, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: bytes = b"{}"
    """A JSON Schema of the arguments."""


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
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] = "auto"
    tool_name: str | None = None
    """With `required`: this one."""
    parallel_tool_calls: bool = True


class InfillPrompt(Frame, frozen=True, tag="infill"):
    """The two texts between which the model writes."""

    prefix: str
    suffix: str


Prompt = TextPrompt | TokenPrompt | ChatPrompt | InfillPrompt


class Grammar(Frame, frozen=True):
    """What a generated text has to be."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf", "tool_calls"]
    """`tool_calls` is Lark that a worker has made itself: it is trusted to write no text that goes on for ever."""
    source: str = ""
    """A JSON Schema, a regular expression, a JSON list of texts, or a grammar."""


class AdapterScale(Frame, frozen=True):
    """A LoRA adapter of the model's options, and how strongly it acts."""

    name: str
    scale: float = 1.0


class Resumed(Frame, frozen=True):
    """A choice that another worker began, as far as it has been sent to the client."""

    tokens: list[int] = []
    """The ids sent, those of an echoed prompt included."""
    finish: FinishReason | None = None
    """It has ended: nothing more is wanted of it."""
    tool_call_ids: list[str] = []
    """Ids of the tool calls that have begun, in order."""


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
    state_dir: str = ""
    """Folder where the cache is kept while the model is not loaded; empty = it is not."""
    embedding: bool = False
    """Give the vectors of texts, even where the model could generate."""
    options: dict[str, msgspec.Raw] = {}
    """MessagePack values by name, which the backend decodes into its own Struct."""
