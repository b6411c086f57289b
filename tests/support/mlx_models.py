"""Model folders for the MLX runtime, converted from GGUF without torch, or made of random weights."""

# pyright: standard
# The libraries of tokenizers and safetensors ship no complete types.

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tests.support.model_cache import made_once
from tests.support.models import starter_model_path
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

Weights = dict[str, NDArray[np.float32]]

CONTROL, USER_DEFINED = 3, 4
"""Kinds of tokens in a GGUF."""
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def smollm2_folder() -> Path:
    """The starter model as an MLX folder in float32 (540 MB), with the GGUF's own tokens and template."""
    return made_once("smollm2-135m-mlx-1", lambda folder: _convert(starter_model_path(), folder))


def tiny_folder() -> Path:
    """A model of random weights (13 MB) with the starter model's tokens: it writes nonsense, but fast."""
    return made_once("tiny-llama-mlx-1", _make_tiny)


def _convert(source: Path, folder: Path) -> None:
    reader = gguf.GGUFReader(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(metadata, tied="output.weight" not in tensors)
    weights: Weights = {}
    for name, tensor in tensors.items():
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        for part, key in heads.items():
            if f".{part}." in name:
                values = _unpermuted(values, config[key])
        weights[_mlx_name(name)] = np.ascontiguousarray(values)
    _write(folder, metadata, config, weights)


def _make_tiny(folder: Path) -> None:
    metadata = {name: field.contents() for name, field in gguf.GGUFReader(starter_model_path()).fields.items()}
    sizes = {"embedding_length": 64, "block_count": 2, "feed_forward_length": 128}
    heads = {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16}
    metadata |= {f"llama.{name}": size for name, size in (sizes | heads).items()}
    config = _config(metadata, tied=True)
    random = np.random.default_rng(1)

    def matrix(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    dims, hidden, kv_dims = 64, 128, 32
    weights: Weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], dims, 1.0)}
    weights["model.norm.weight"] = np.ones(dims, dtype=np.float32)
    shapes = {
        "attn_q": (dims, dims),
        "attn_k": (kv_dims, dims),
        "attn_v": (kv_dims, dims),
        "attn_output": (dims, dims),
        "ffn_gate": (hidden, dims),
        "ffn_up": (hidden, dims),
        "ffn_down": (dims, hidden),
    }
    for layer in range(2):
        for part, (rows, columns) in shapes.items():
            weights[_mlx_name(f"blk.{layer}.{part}.weight")] = matrix(rows, columns, 2 / columns**0.5)
        for part in ("attn_norm", "ffn_norm"):
            weights[_mlx_name(f"blk.{layer}.{part}.weight")] = np.ones(dims, dtype=np.float32)
    _write(folder, metadata, config, weights)


def _write(folder: Path, metadata: dict[str, Any], config: dict[str, Any], weights: Weights) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    tokenizer = _tokenizer(metadata)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {name: _token_named(metadata, f"{name}_token_id") for name in ("bos", "eos", "padding")}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": names["bos"],
        "eos_token": names["eos"],
        "pad_token": names["padding"],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def _token_named(metadata: dict[str, Any], key: str) -> str | None:
    id = metadata.get(f"tokenizer.ggml.{key}")
    return None if id is None else metadata["tokenizer.ggml.tokens"][id]


def _config(metadata: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """llama's `config.json`."""

    def own(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": own("embedding_length"),
        "num_hidden_layers": own("block_count"),
        "intermediate_size": own("feed_forward_length"),
        "num_attention_heads": own("attention.head_count"),
        "num_key_value_heads": own("attention.head_count_kv"),
        "head_dim": own("rope.dimension_count"),
        "rms_norm_eps": own("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": own("context_length"),
        "rope_theta": own("rope.freq_base"),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }


def _mlx_name(name: str) -> str:
    if match := _LAYER_TENSOR.fullmatch(name):
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.weight"
    return f"{_TOP[name.removesuffix('.weight')]}.weight"


def _unpermuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp's converter permutes the rows of q and k for its form of RoPE."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """SmolLM2's tokenizer: byte pairs after single digits, as its GGUF's `smollm` pre-tokenizer has it."""
    texts: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [(pair[0], pair[1]) for pair in (merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={text: id for id, text in enumerate(texts)}, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for special, kind in ((True, CONTROL), (False, USER_DEFINED)):
        found = [text for text, each in zip(texts, kinds, strict=True) if each == kind]
        added = [AddedToken(text, special=special, normalized=False) for text in found]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    return tokenizer
