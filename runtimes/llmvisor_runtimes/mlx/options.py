"""The options of a model that only MLX knows, decoded and checked."""

from __future__ import annotations

from typing import Annotated

import msgspec

from llmvisor_runtimes.options import decode_options
from llmvisor_runtimes.protocol import ModelOptions


class MlxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of an MLX model."""

    chat_template: str | None = None
    """A Jinja template in place of the folder's own."""
    idle_sequences: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 32
    """Computed prompts and ended texts that are kept for prompts that begin the same way."""
    idle_cache_mb: Annotated[int, msgspec.Meta(ge=0)] = 512
    """Memory that they may take."""


def read_options(raw: dict[str, msgspec.Raw]) -> MlxOptions:
    """Raises `LoadError` (permanent)."""
    return decode_options(raw, MlxOptions, backend="mlx")


def without_meaning(options: ModelOptions) -> list[str]:
    """Settings that somebody changed and that MLX has nothing for."""
    default = ModelOptions()
    names: list[str] = []
    if options.n_threads:
        names.append("n_threads (MLX takes no number of threads)")
    if options.n_gpu_layers not in {default.n_gpu_layers, 0}:
        names.append("n_gpu_layers (MLX has all layers on one device; 0 takes the CPU)")
    if options.use_mmap != default.use_mmap:
        names.append("use_mmap (MLX always reads weights as they are needed)")
    if options.use_mlock != default.use_mlock:
        names.append("use_mlock (MLX wires what the GPU uses by itself)")
    return names
