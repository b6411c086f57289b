"""The options of a model that only this backend knows, decoded and checked."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmvisor_runtimes.options import decode_options

Kind = Literal["m3", "dense", "reranker", "llm_reranker", "layerwise_reranker"]
"""Which of FlagEmbedding's classes serves a model: `BGEM3FlagModel`, `FlagModel`, `FlagReranker`, `FlagLLMReranker`,
`LayerWiseFlagLLMReranker`."""

Pooling = Literal["cls", "mean", "last"]


class FlagOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of a model of FlagEmbedding."""

    kind: Kind | Literal["auto"] = "auto"
    """`auto` tells it from the folder's files."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the best that is there."""
    fp16: bool | None = None
    """Half precision; None takes it on GPUs. CPUs always compute in float32."""
    pooling: Pooling | Literal["auto"] = "auto"
    normalize: bool | None = None
    """Dense vectors of length 1; None does as the folder says."""
    max_length: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens of one input; 0 takes what the model was made for, up to `n_ctx`."""
    instruction: str = ""
    """Stands before every text that is embedded, and before the query of every pair that is scored."""
    prompt: str | None = None
    """The question to an LLM reranker; None takes FlagEmbedding's."""
    cutoff_layer: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The layer from which a layerwise reranker scores; None takes the last."""
    batch_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens of one forward pass with padding, at most; 0 leaves it to the backend."""
    batch_inputs: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256


def read_options(raw: dict[str, msgspec.Raw]) -> FlagOptions:
    """Raises `LoadError` (permanent)."""
    return decode_options(raw, FlagOptions, backend="flag")
