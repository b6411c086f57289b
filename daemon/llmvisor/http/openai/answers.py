"""The objects that answers share: usage, timings, log-probabilities. Pure.

Shapes follow OpenAI's API reference (chat completions and legacy completions); `timings` is llama.cpp's addition.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import msgspec

from llmvisor.control.api import ModelStatus
from llmvisor_runtimes.protocol import Done

_LOGPROB_MIN = -9999.0
"""What OpenAI gives for a token that cannot come; JSON has no infinity."""


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Timings(msgspec.Struct):
    """Of the model alone, without waiting; over all choices."""

    prompt_ms: float
    predicted_ms: float
    prompt_per_second: float
    """Prompt tokens that were computed, not found in the cache."""
    predicted_per_second: float
    draft_n: int | msgspec.UnsetType = msgspec.UNSET
    """Tokens that were guessed ahead, by llama.cpp's name; left out where none were."""
    draft_n_accepted: int | msgspec.UnsetType = msgspec.UNSET
    resumed: int | msgspec.UnsetType = msgspec.UNSET
    """How often another worker went on with it; left out where none had to."""


def total(done: list[Done]) -> Done:
    """The sums over the prompts of one request. Times add up too, though prompts may run side by side."""
    return Done(
        id=0,
        prompt_tokens=sum(one.prompt_tokens for one in done),
        cached_tokens=sum(one.cached_tokens for one in done),
        completion_tokens=sum(one.completion_tokens for one in done),
        prompt_ms=sum(one.prompt_ms for one in done),
        predicted_ms=sum(one.predicted_ms for one in done),
        drafted_tokens=sum(one.drafted_tokens for one in done),
        accepted_tokens=sum(one.accepted_tokens for one in done),
        resumed=sum(one.resumed for one in done),
    )


def usage(done: Done) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        total_tokens=done.prompt_tokens + done.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=done.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(
            accepted_prediction_tokens=done.accepted_tokens,
            rejected_prediction_tokens=max(0, done.drafted_tokens - done.accepted_tokens),
        ),
    )


def timings(done: Done) -> Timings:
    return Timings(
        prompt_ms=round(done.prompt_ms, 3),
        predicted_ms=round(done.predicted_ms, 3),
        prompt_per_second=_per_second(done.prompt_tokens - done.cached_tokens, done.prompt_ms),
        predicted_per_second=_per_second(done.completion_tokens, done.predicted_ms),
        draft_n=done.drafted_tokens or msgspec.UNSET,
        draft_n_accepted=done.accepted_tokens if done.drafted_tokens else msgspec.UNSET,
        resumed=done.resumed or msgspec.UNSET,
    )


def finite(logprob: float) -> float:
    """A log-probability that JSON can say."""
    return logprob if logprob > _LOGPROB_MIN else _LOGPROB_MIN  # noqa: FURB136  # max() would let NaN through


def system_fingerprint(model: ModelStatus) -> str:
    """Changes with the weights and the backend: two answers of one seed are comparable while it stays.

    `model` is as it stands once the model is loaded: before that, its file may not have been looked at.
    """
    return _fingerprint(model.backend, model.path, model.size, model.created)


@lru_cache(maxsize=256)
def _fingerprint(*parts: str | int | None) -> str:
    return "fp_" + blake2b(repr(parts).encode(), digest_size=5).hexdigest()


def _per_second(tokens: int, milliseconds: float) -> float:
    return round(tokens * 1000 / milliseconds, 3) if milliseconds > 0 else 0.0
