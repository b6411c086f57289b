"""The options of a model that only llama.cpp knows, decoded and checked."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.options import decode_options

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class AdapterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A LoRA adapter."""

    path: str
    scale: Annotated[float, msgspec.Meta(ge=-1000, le=1000)] = 1.0
    """How strongly it acts where a request does not say; 0 leaves it to those that ask for it."""


class LlamaCppOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of a llama.cpp model, by llama.cpp's own names."""

    chat_template: str | None = None
    """A Jinja template in place of the file's own."""
    stop: Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]], msgspec.Meta(max_length=16)] = []
    """Texts that end an answer in a conversation, beside the request's own."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    """Other than f16, f32 and bf16 only with flash attention."""
    n_ubatch: Annotated[int, msgspec.Meta(ge=1)] = 512
    """Tokens that one graph computes; a batch is cut into these."""
    n_threads_batch: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Threads for prompts; 0 takes as many as for decoding."""
    rope_freq_base: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """0 takes the model's own."""
    rope_freq_scale: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    main_gpu: Annotated[int, msgspec.Meta(ge=0)] = 0
    split_mode: Literal["none", "layer", "row"] = "layer"
    offload_kqv: bool = True
    mmproj: str | None = None
    """A GGUF beside the model that makes embeddings of images and sounds; none without it."""
    draft_model: str | None = None
    """A small GGUF of the same vocabulary, which guesses where `draft` is asked for."""
    speculative: Literal["off", "lookup", "draft"] = "off"
    """How tokens are guessed ahead where a request does not say."""
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    """How a text becomes a vector (or, `rank`, a score); None as the model's file says. With one of them the model
    encodes texts, with `none` it goes on with them."""
    adapters: dict[str, AdapterOptions] = {}
    """By the names that requests choose them by."""
    idle_sequences: Annotated[int, msgspec.Meta(ge=0, le=128)] = 16
    """Ended sequences that are kept as cache for prompts that begin the same way."""
    idle_cache_mb: Annotated[int, msgspec.Meta(ge=0)] = 512
    """Memory beside the context that they may take while others decode, where the context is in main memory; 0 leaves
    them in the context."""


def read_options(raw: dict[str, msgspec.Raw]) -> LlamaCppOptions:
    """The options, checked against each other as well. Raises `LoadError` (permanent)."""
    options = decode_options(raw, LlamaCppOptions, backend="llamacpp")
    if options.speculative == "draft" and options.draft_model is None:
        raise LoadError("speculative 'draft' needs a draft_model", permanent=True)
    quantized_v = options.type_v not in {"f32", "f16", "bf16"}
    if quantized_v and options.flash_attn == "off":
        raise LoadError(f"type_v {options.type_v!r} needs flash attention, which is off", permanent=True)
    return options
