"""What every dialect asks for, and what every service gives: the one path of a request.

A dialect decodes its own request into a `Generation`, routing finds the service and the model, and the service gives
a `Stream`. Nothing above this module knows where or how a model runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, Self

import msgspec

from llmvisor.control.api import ModelStatus
from llmvisor_runtimes.protocol import ChatPrompt, Delta, Done, Prompt, Sampling, Tokens


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


class Stream(Protocol):
    """A generation under way. Iterating gives, each time, every delta that has come since.

    Raises an `LlmvisorError` where the generation fails: from the first step of the iteration where nothing has
    come yet. Leaving the `async with` before the end cancels the generation.
    """

    queue_ms: float
    """Waited for a place; whole once the first deltas have come."""
    load_ms: float
    """Of that, waited for the model to load."""
    done: Done | None
    """Usage and timings, once the iteration has ended."""

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

    def generate(self, model: str, generation: Generation) -> Stream:
        """Begin a generation; waits for nothing. Raises what can be told at once (`QueueFull`, `ShuttingDown`, …)."""
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
