"""Tiny models of random weights: what the engine does with sequences shows in milliseconds, whatever they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

BOS, EOS, SPACE, END_OF_TURN = 1, 2, 259, 260
FIRST_BYTE = 3
"""Token of the byte 0; the others follow."""
VOCABULARY = 261
INFILL_TOKENS = (FIRST_BYTE + 0xFD, FIRST_BYTE + 0xFE, FIRST_BYTE + 0xFF)
"""Before the prefix, the suffix and the middle: bytes that no text in UTF-8 has."""
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokens(text: str) -> list[int]:
    """The token ids of a text without spaces, byte by byte."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 1,
    layers: int = 2,
    dims: int = 64,
    context_length: int = 1024,
    infill: bool = False,
    mrope: bool = False,
    further_tokens: Sequence[str] = (),
    split_tensors: int = 0,
) -> Path:
    """Write a model of llama's architecture with one token for each byte; the same seed gives the same file.

    With `infill` it names the `INFILL_TOKENS`. With `mrope` it is Qwen2-VL's, where images have two dimensions.
    `further_tokens` are special ones.
    With `split_tensors` it is split into files of so many tensors, and the first one's path is given.
    """
    writer = gguf.GGUFWriter(path, "qwen2vl" if mrope else "llama", split_max_tensors=split_tensors)
    writer.add_name("tiny")
    writer.add_context_length(context_length)
    writer.add_embedding_length(dims)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * dims)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dims // 4)
    if mrope:
        writer.add_rope_dimension_sections([dims // 16, dims // 32, dims // 32, 0])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_byte_tokenizer(writer, further_tokens)
    for name, token in zip(("pre", "suf", "mid"), INFILL_TOKENS if infill else (), strict=False):
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)
    _add_weights(writer, np.random.default_rng(seed), layers, dims, VOCABULARY + len(further_tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if split_tensors else path


def add_byte_tokenizer(writer: gguf.GGUFWriter, further_tokens: Sequence[str] = ()) -> None:
    """One token for each byte, a conversation's template, and a leading token."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "<|end|>"]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, kinds.NORMAL, kinds.CONTROL]
    assert len(tokens) == VOCABULARY
    tokens += further_tokens
    types += [kinds.CONTROL] * len(further_tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_weights(writer: gguf.GGUFWriter, random: np.random.Generator, layers: int, dims: int, vocabulary: int) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        # Large enough that attention looks at something: text then depends on the whole context.
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * 2 / columns**0.5).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(dims, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, dims)
    ones("output_norm.weight")
    matrix("output.weight", vocabulary, dims)
    for layer in range(layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        ones(f"{block}.ffn_norm.weight")
        matrix(f"{block}.attn_q.weight", dims, dims)
        matrix(f"{block}.attn_k.weight", dims // 2, dims)
        matrix(f"{block}.attn_v.weight", dims // 2, dims)
        matrix(f"{block}.attn_output.weight", dims, dims)
        matrix(f"{block}.ffn_gate.weight", 2 * dims, dims)
        matrix(f"{block}.ffn_up.weight", 2 * dims, dims)
        matrix(f"{block}.ffn_down.weight", dims, 2 * dims)
