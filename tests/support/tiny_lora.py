"""Tiny LoRA adapters of random weights for the model of `tiny_gguf`."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_tiny_lora(
    path: Path, *, seed: int = 1, layers: int = 2, dims: int = 64, rank: int = 4, architecture: str = "llama"
) -> Path:
    """Write an adapter that changes what attention asks for, and what it gives, in each layer."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(layers):
        for name in ("attn_q", "attn_output"):
            weights = {"a": (rank, dims), "b": (dims, rank)}
            for part, shape in weights.items():
                values = (random.standard_normal(shape) / rank**0.5).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
