"""Under what an answer is kept: who answers, and the whole of what was asked. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from llmvisor.services.service import (
    DEFAULT_TERMS,
    EmbeddingRequest,
    Generation,
    ModelIdentity,
    SamplingRequest,
    ScoringRequest,
)
from llmvisor_runtimes.protocol import ChatPrompt, Prompt

_ENCODER = msgspec.msgpack.Encoder()


def generation_key(model: str, identity: ModelIdentity, generation: Generation) -> str | None:
    """The key of a generation; None for one that is not answered the same each time, or that calls tools.

    Parameters that a client leaves out count as the model's defaults, and the order of JSON keys does not count.
    """
    sampling = generation.sampling.over(identity.sampling)
    repeatable = sampling.temperature == 0 or sampling.seed is not None or identity.cache_always
    if generation.cache == "no-store" or not repeatable or not identity.fingerprint:
        return None
    if isinstance(generation.prompt, ChatPrompt) and generation.prompt.tools:
        return None
    asked = msgspec.structs.replace(
        generation,
        request_id="",
        keep_alive_seconds=None,
        cache="use",
        sampling=SamplingRequest(),
        prompt=_canonical(generation.prompt),
        max_tokens=identity.max_tokens if generation.max_tokens is None else generation.max_tokens,
        cache_prompt=True,  # changes how soon, not what
        speculative=None,  # as above
        terms=DEFAULT_TERMS,
    )
    biases = sorted(sampling.logit_bias.items())
    sampling = msgspec.structs.replace(sampling, logit_bias={})
    return _digest("generation", model, identity.fingerprint, sampling, biases, asked)


def embedding_key(model: str, identity: ModelIdentity, request: EmbeddingRequest) -> str | None:
    """The key of texts to embed."""
    if request.cache == "no-store" or not identity.fingerprint:
        return None
    asked = (request.inputs, sorted(request.kinds), request.truncate)
    return _digest("embedding", model, identity.fingerprint, asked)


def scoring_key(model: str, identity: ModelIdentity, request: ScoringRequest) -> str | None:
    """The key of pairs to score."""
    if request.cache == "no-store" or not identity.fingerprint:
        return None
    return _digest("scoring", model, identity.fingerprint, (request.pairs, request.truncate))


def _canonical(prompt: Prompt) -> Prompt:
    if not isinstance(prompt, ChatPrompt):
        return prompt
    kwargs = msgspec.json.encode(msgspec.json.decode(prompt.template_kwargs), order="sorted")
    return msgspec.structs.replace(prompt, template_kwargs=kwargs)


def _digest(*parts: object) -> str:
    return hashlib.sha256(_ENCODER.encode(parts)).hexdigest()
