"""What every dialect asks for, and what every service gives: the one path of a request.

A dialect decodes its own request into a `Generation`, routing finds the service and the model, and the service gives
a `Stream`. Nothing above this module knows where or how a model runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, Protocol, Self

import msgspec

from llmvisor.control.api import ModelStatus
from llmvisor.supervision.scheduling.effects import Priority
from llmvisor_runtimes.protocol import (
    AdapterScale,
    ChatPrompt,
    Delta,
    Done,
    Embedding,
    EmbeddingKind,
    Grammar,
    Lane,
    Prompt,
    Sampling,
    Tokens,
)

Speculative = Literal["off", "lookup", "draft"]
"""How tokens are guessed ahead."""

CacheUse = Literal["use", "no-cache", "no-store"]
"""Whether an answer may come from the response cache, and whether it may be kept there (`Cache-Control`)."""

CacheState = Literal["hit", "miss", "coalesced", "off"]
"""Where an answer came from; `coalesced` = from the run of the same request by somebody else."""


class Terms(msgspec.Struct, frozen=True):
    """On what terms a request is served, whatever it asks for."""

    client: str = ""
    """Whose it is, by its key, else by its address: clients take turns."""
    priority: Priority = "normal"
    deadline: float | None = None
    """When it is wanted no more, on the daemon's monotonic clock."""
    resume: bool = True
    """A worker's end is a pause; otherwise an error."""


DEFAULT_TERMS = Terms()


class ModelIdentity(msgspec.Struct, frozen=True):
    """What the answers of a model depend on beside the request."""

    fingerprint: str
    """Changes with the model's file, its options, its backend; empty where the file is not there."""
    sampling: Sampling
    max_tokens: int | None
    cache_always: bool = False
    """Answers are kept although they would differ the next time."""


class SamplingRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client set of `protocol.Sampling`; None takes the model's own default. Bounds are checked on decoding."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: tuple[str, ...] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None

    def over(self, defaults: Sampling) -> Sampling:
        """The model's defaults with what the client set on top."""
        chosen = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(defaults, **chosen)


class Generation(msgspec.Struct, frozen=True):
    """One request to continue one prompt, as every dialect says it."""

    request_id: str
    prompt: Prompt
    sampling: SamplingRequest
    n: int = 1
    max_tokens: int | None = None
    """None takes the model's default."""
    stop: list[str] = []
    logprobs: int | None = None
    echo: bool = False
    ignore_eos: bool = False
    cache_prompt: bool = True
    keep_alive_seconds: float | None = None
    """How long the model stays loaded after this request; 0 unloads it at once, negative keeps it. None = its own."""
    grammar: Grammar | None = None
    adapters: list[AdapterScale] | None = None
    """None takes the model's own."""
    speculative: Speculative | None = None
    """None takes the model's own."""
    cache: CacheUse = "use"
    terms: Terms = DEFAULT_TERMS


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """Texts whose vectors are wanted, as every dialect says it."""

    request_id: str
    inputs: list[str | list[int]]
    """Texts, or the token ids of texts, special ones not included."""
    kinds: list[EmbeddingKind]
    truncate: bool = False
    """Cut what is longer than the model takes; otherwise the request fails."""
    lane: Lane = "interactive"
    keep_alive_seconds: float | None = None
    cache: CacheUse = "use"
    terms: Terms = DEFAULT_TERMS


class ScoringRequest(msgspec.Struct, frozen=True):
    """Pairs of texts, the second of which may answer the first."""

    request_id: str
    pairs: list[tuple[str, str]]
    truncate: bool = False
    lane: Lane = "interactive"
    keep_alive_seconds: float | None = None
    cache: CacheUse = "use"
    terms: Terms = DEFAULT_TERMS


class Embedded(msgspec.Struct, kw_only=True):
    """The vectors of each input, in order."""

    items: list[Embedding]
    queue_ms: float = 0.0
    load_ms: float = 0.0
    cache: CacheState = "off"


class Scored(msgspec.Struct, kw_only=True):
    """A raw score (a logit) for each pair, in order."""

    scores: list[float]
    tokens: int
    """Of all pairs, special ones included."""
    queue_ms: float = 0.0
    load_ms: float = 0.0
    cache: CacheState = "off"


class Stream(Protocol):
    """A generation under way. Iterating gives, each time, every delta that has come since.

    Raises an `LlmvisorError` where the generation fails: from the first step of the iteration where nothing has
    come yet. Leaving the `async with` before the end cancels the generation.
    """

    @property
    def queue_ms(self) -> float:
        """Waited for a place; whole once the first deltas have come."""
        ...

    @property
    def load_ms(self) -> float:
        """Of that, waited for the model to load."""
        ...

    @property
    def done(self) -> Done | None:
        """Usage and timings, once the iteration has ended."""
        ...

    @property
    def cache(self) -> CacheState: ...

    @property
    def waits_for(self) -> Callable[[], str]:
        """What it waits for at the moment, in a few words: `position 3 of 7`; empty once it runs."""
        ...

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...


class Service(Protocol):
    """Something that serves models."""

    name: str

    def models(self) -> list[ModelStatus]:
        """All models, in the order of configuration."""
        ...

    def model(self, name: str) -> ModelStatus:
        """One model, asked for with every request. Raises `ModelNotFound`."""
        ...

    def identity(self, model: str) -> ModelIdentity:
        """What the model's answers depend on. Raises `ModelNotFound`."""
        ...

    def generate(self, model: str, generation: Generation) -> Stream:
        """Begin a generation; waits for nothing. Raises what can be told at once (`QueueFull`, `ShuttingDown`, …)."""
        ...

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        """The vectors of texts. Raises an `LlmvisorError`; to be cancelled cancels the request in the worker."""
        ...

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        """The scores of pairs of texts, with the same errors and the same end."""
        ...

    async def tokenize(self, model: str, prompt: Prompt, *, add_special: bool, parse_special: bool) -> Tokens:
        """A prompt's token ids and the bytes of each."""
        ...

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """The text of token ids."""
        ...

    async def apply_template(self, model: str, prompt: ChatPrompt) -> str:
        """A conversation as the text that the model reads."""
        ...
