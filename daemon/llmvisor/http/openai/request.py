"""What chat and text completions have in common: the fields of a request, and their bounds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.decode import shown
from llmvisor.http.durations import keep_alive_seconds
from llmvisor.http.openai.grammar import GrammarFields
from llmvisor.services.service import SamplingRequest, Speculative
from llmvisor_runtimes.protocol import AdapterScale

T = TypeVar("T")
Ratio = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0, le=limits.tokens_max)]
Window = Annotated[int, Meta(ge=-1, le=limits.tokens_max)]
"""Tokens to look back; -1 = the whole context."""
TokenId = Annotated[int, Meta(ge=0, le=limits.tokens_max)]
MaxTokens = Annotated[int, Meta(ge=1, le=limits.tokens_max)]
Choices = Annotated[int, Meta(ge=1, le=limits.choices_max)]
Top = Annotated[int, Meta(ge=0, le=limits.top_logprobs_max)]
ModelName = Annotated[str, Meta(max_length=limits.model_name_chars_max)]
Stop = Annotated[str, Meta(min_length=1, max_length=limits.stop_string_bytes_max)]
AdapterName = Annotated[str, Meta(min_length=1, max_length=limits.adapter_name_chars_max)]
Scale = Annotated[float, Meta(ge=-100, le=100)]
Breaker = Annotated[str, Meta(min_length=1, max_length=limits.dry_breaker_chars_max)]

_TOKEN_ID = re.compile(r"\d{1,10}", re.ASCII)


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Lora(msgspec.Struct):
    """An adapter as llama.cpp's server names it: by number, in the order of the model's options."""

    id: Annotated[int, Meta(ge=0, lt=limits.adapters_max)] | AdapterName | None = None
    name: AdapterName | None = None
    scale: Scale = 1.0


class SamplingFields(GrammarFields, kw_only=True):
    """The request's fields that say how tokens are chosen, OpenAI's and those that local servers share."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Ratio | None = None
    top_k: Count | None = None
    min_p: Ratio | None = None
    typical_p: Ratio | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_last_n: Window | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] | None = None
    mirostat_eta: Ratio | None = None
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[list[Breaker], Meta(max_length=limits.dry_breakers_max)] | None = None
    xtc_probability: Ratio | None = None
    xtc_threshold: Ratio | None = None
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None

    def sampling(self) -> SamplingRequest:
        """Raises `InvalidRequest`."""
        breakers = self.dry_sequence_breakers
        return SamplingRequest(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repeat_penalty=self.repeat_penalty,
            repeat_last_n=self.repeat_last_n,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            mirostat=self.mirostat,
            mirostat_tau=self.mirostat_tau,
            mirostat_eta=self.mirostat_eta,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=self.dry_allowed_length,
            dry_penalty_last_n=self.dry_penalty_last_n,
            dry_sequence_breakers=None if breakers is None else tuple(breakers),
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            seed=folded_seed(self.seed),
            logit_bias=token_biases(self.logit_bias),
        )


class GenerationFields(SamplingFields, kw_only=True):
    """What both endpoints take beside their prompt."""

    model: ModelName | None = None
    n: Choices | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=limits.stop_strings_max)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    keep_alive: float | str | None = None
    speculative: Speculative | None = None
    adapters: Annotated[dict[AdapterName, Scale], Meta(max_length=limits.adapters_max)] | None = None
    lora: Annotated[list[Lora], Meta(max_length=limits.adapters_max)] | None = None

    def stop_strings(self) -> list[str]:
        """Raises `InvalidRequest`."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        for number, text in enumerate(stops):
            if len(text.encode()) > limits.stop_string_bytes_max:
                param = "stop" if isinstance(self.stop, str) else f"stop[{number}]"
                raise InvalidRequest(f"{param}: expected at most {limits.stop_string_bytes_max} bytes", param=param)
        return stops

    def keep_alive_seconds(self) -> float | None:
        """Raises `InvalidRequest`."""
        return keep_alive_seconds(self.keep_alive)

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def adapter_scales(self) -> list[AdapterScale] | None:
        """None takes the model's own. Raises `InvalidRequest`."""
        if self.lora is None:
            return None if self.adapters is None else [AdapterScale(*item) for item in self.adapters.items()]
        if self.adapters is not None:
            raise InvalidRequest("lora: expected either adapters or lora", param="lora")
        scales: list[AdapterScale] = []
        for number, one in enumerate(self.lora):
            name = one.name if one.id is None else str(one.id)
            if name is None:
                raise InvalidRequest(f"lora[{number}].name is required", param=f"lora[{number}].name")
            scales.append(AdapterScale(name, one.scale))
        return scales


_WAYS: dict[str, str] = {
    **dict.fromkeys(("vision", "audio"), "; mmproj in a llamacpp model's options names a file that lets it"),
}
"""How a model gets what it cannot do."""


def check_capable(model: ModelStatus, needs: Iterable[tuple[str, str]]) -> None:
    """`needs` are capabilities, each with the field that asks for it. What is not known yet the worker will tell.

    Raises `UnsupportedOperation`.
    """
    for capability, param in needs:
        if model.capabilities and capability not in model.capabilities:
            able = ", ".join(model.capabilities)
            message = f"{param}: the model '{model.id}' cannot do {capability}, only: {able}{_WAYS.get(capability, '')}"
            raise UnsupportedOperation(message, param=param)


def folded_seed(seed: int | None) -> int | None:
    """A seed of any size as one that the samplers take; -1 is llama.cpp's word for a random one."""
    return None if seed is None or seed == -1 else seed % limits.seed_max


def token_biases(biases: dict[str, float] | None) -> dict[int, float] | None:
    """`logit_bias` by token id. Raises `InvalidRequest`."""
    if biases is None:
        return None
    if len(biases) > limits.logit_bias_entries_max:
        raise InvalidRequest(
            f"logit_bias: expected at most {limits.logit_bias_entries_max} entries, found {len(biases)}",
            param="logit_bias",
        )
    for key in biases:
        if not _TOKEN_ID.fullmatch(key) or int(key) > limits.tokens_max:
            raise InvalidRequest(f"logit_bias: expected token ids as keys, found {shown(key)}", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}
