"""Encoders as GGUF: a real one converted from its safetensors, and tiny ones of random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tests.support.minilm import minilm_folder
from tests.support.model_cache import made_once
from tests.support.tiny_gguf import VOCABULARY as BYTE_VOCABULARY
from tests.support.tiny_gguf import add_byte_tokenizer

PAD, UNKNOWN, CLS, SEP = 0, 1, 2, 3
FIRST_LETTER = 4
"""Token of a word that is the letter a; the others follow, then the letters inside words."""
RERANK_TEMPLATE = "Q:{query}D:{document}<|end|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TINY_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
VOCABULARY = len(TINY_PIECES)

_SPECIALS = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>", "<unk>", "<mask>"}


def word_tokens(text: str) -> list[int]:
    """Ids of the tiny models' tokens for a text of lower-case words, special ones not included."""
    return [
        FIRST_LETTER + LETTERS.index(letter) + (len(LETTERS) if place else 0)
        for word in text.split()
        for place, letter in enumerate(word)
    ]


# ------------------------------------------------------------------------------------------------------- a real one


def minilm_gguf() -> Path:
    """all-MiniLM-L6-v2 with its matrices as 16-bit floats and mean pooling, 46 MB."""
    pooling = gguf.PoolingType.MEAN
    return made_once("all-MiniLM-L6-v2.f16.1.gguf", lambda path: convert_bert(minilm_folder(), path, pooling=pooling))


def convert_bert(folder: Path, path: Path, *, pooling: gguf.PoolingType | None) -> Path:
    """Write a BERT or XLM-RoBERTa of transformers, a classifier of its kind too, as GGUF."""
    config = json.loads((folder / "config.json").read_text())
    is_roberta = config["model_type"] == "xlm-roberta"
    # RoBERTa's first position is the one after the padding token's number.
    first_position = config["pad_token_id"] + 1 if is_roberta else 0
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"] - first_position)
    _add_shape(
        writer,
        layers=config["num_hidden_layers"],
        dims=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        epsilon=config["layer_norm_eps"],
    )
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if is_roberta:
        _add_unigrams(writer, json.loads((folder / "tokenizer.json").read_text()))
    else:
        _add_word_pieces(writer, (folder / "vocab.txt").read_text().splitlines())
    tensors = dict(_read_safetensors(folder / "model.safetensors"))
    for name, tensor in _named(tensors, config["num_hidden_layers"]):
        weights = tensor[first_position:] if name == "position_embd.weight" else tensor
        is_matrix = weights.ndim == 2 and "_norm" not in name and name != "token_types.weight"
        writer.add_tensor(name, np.ascontiguousarray(weights, dtype=np.float16 if is_matrix else np.float32))
    _write(writer)
    return path


def _read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """A header of JSON behind its length in 8 bytes, then the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, facts in header.items():
        if name != "__metadata__" and facts["dtype"] == "F32":
            first, last = facts["data_offsets"]
            yield name, np.frombuffer(data[start + first : start + last], dtype="<f4").reshape(facts["shape"])


def _named(tensors: dict[str, NDArray[np.float32]], layers: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors under the names that llama.cpp knows, without those that it does not read."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for full, tensor in tensors.items():
        name = full.removeprefix("bert.").removeprefix("roberta.")
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"{name} has no name in GGUF"
        yield found, tensor


def _add_word_pieces(writer: gguf.GGUFWriter, pieces: Sequence[str]) -> None:
    kinds = gguf.TokenType
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    # llama.cpp marks the pieces that begin a word, where WordPiece marks those that do not.
    marked = [piece if piece in _SPECIALS else piece[2:] if piece.startswith("##") else f"▁{piece}" for piece in pieces]
    writer.add_token_list(marked)
    writer.add_token_types([kinds.CONTROL if piece in _SPECIALS else kinds.NORMAL for piece in pieces])
    writer.add_unk_token_id(pieces.index("[UNK]"))
    writer.add_sep_token_id(pieces.index("[SEP]"))
    writer.add_pad_token_id(pieces.index("[PAD]"))
    writer.add_bos_token_id(pieces.index("[CLS]"))


def _add_unigrams(writer: gguf.GGUFWriter, tokenizer: dict[str, dict[str, list[tuple[str, float]]]]) -> None:
    kinds = gguf.TokenType
    vocabulary = [(piece, score) for piece, score in tokenizer["model"]["vocab"]]
    if "<mask>" not in {piece for piece, _ in vocabulary}:
        vocabulary.append(("<mask>", 0.0))
    pieces = [piece for piece, _ in vocabulary]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores([score for _, score in vocabulary])
    types = {"<unk>": kinds.UNKNOWN} | dict.fromkeys(_SPECIALS - {"<unk>"}, kinds.CONTROL)
    writer.add_token_types([types.get(piece, kinds.NORMAL) for piece in pieces])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_bos_token_id(pieces.index("<s>"))
    writer.add_eos_token_id(pieces.index("</s>"))
    writer.add_sep_token_id(pieces.index("</s>"))
    writer.add_unk_token_id(pieces.index("<unk>"))
    writer.add_pad_token_id(pieces.index("<pad>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(True)


# ------------------------------------------------------------------------------------------------------- tiny ones


def write_tiny_encoder(
    path: Path,
    *,
    pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN,
    classifier: bool = False,
    context_length: int = 128,
    seed: int = 1,
    layers: int = 2,
    dims: int = 32,
) -> Path:
    """Write a BERT that knows letters; the same seed gives the same file. A `classifier` gives one score."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-encoder")
    writer.add_context_length(context_length)
    _add_shape(writer, layers=layers, dims=dims, inner=2 * dims, heads=4, epsilon=1e-12)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_word_pieces(writer, TINY_PIECES)
    _add_random_weights(writer, np.random.default_rng(seed), context_length=context_length, layers=layers, dims=dims)
    if classifier:
        weights = np.random.default_rng(seed + 1).standard_normal((1, dims)) * 2 / dims**0.5
        writer.add_tensor("cls.output.weight", weights.astype(np.float32))
        writer.add_tensor("cls.output.bias", np.full(1, 0.25, dtype=np.float32))
    _write(writer)
    return path


def write_tiny_t5(path: Path, *, seed: int = 1, dims: int = 32) -> Path:
    """Write the encoder half of a T5 that knows letters, in one layer of random weights."""
    writer = gguf.GGUFWriter(path, "t5encoder")
    writer.add_name("tiny-t5")
    writer.add_context_length(128)
    writer.add_embedding_length(dims)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * dims)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(8)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_word_pieces(writer, TINY_PIECES)
    random = np.random.default_rng(seed)
    shapes = {
        **{f"enc.blk.0.{name}.weight": (dims, dims) for name in ("attn_q", "attn_k", "attn_v", "attn_o")},
        "token_embd.weight": (VOCABULARY, dims),
        "enc.blk.0.attn_rel_b.weight": (8, 4),
        "enc.blk.0.ffn_up.weight": (2 * dims, dims),
        "enc.blk.0.ffn_down.weight": (dims, 2 * dims),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, (random.standard_normal(shape) * 2 / shape[1] ** 0.5).astype(np.float32))
    for name in ("enc.blk.0.attn_norm.weight", "enc.blk.0.ffn_norm.weight", "enc.output_norm.weight"):
        writer.add_tensor(name, np.ones(dims, dtype=np.float32))
    _write(writer)
    return path


def write_tiny_llm_reranker(path: Path, *, seed: int = 1, dims: int = 64, context_length: int = 1024) -> Path:
    """Write a Qwen3 that says how likely yes is, in one layer of random weights, with a template of its own."""
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("tiny-llm-reranker")
    writer.add_context_length(context_length)
    writer.add_embedding_length(dims)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * dims)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_classifier_output_labels(["yes", "no"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_byte_tokenizer(writer)
    writer.add_chat_template([{"name": "rerank", "template": RERANK_TEMPLATE}])
    random = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (BYTE_VOCABULARY, dims),
        "cls.output.weight": (2, dims),
        **{f"blk.0.{name}.weight": (dims, dims) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}.weight": (2 * dims, dims) for name in ("ffn_up", "ffn_gate")},
        "blk.0.ffn_down.weight": (dims, 2 * dims),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, (random.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32))
    for name, size in {"attn_norm": dims, "ffn_norm": dims, "attn_q_norm": dims // 4, "attn_k_norm": dims // 4}.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(size, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(dims, dtype=np.float32))
    _write(writer)
    return path


def _add_shape(writer: gguf.GGUFWriter, *, layers: int, dims: int, inner: int, heads: int, epsilon: float) -> None:
    writer.add_embedding_length(dims)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(epsilon)
    writer.add_causal_attention(False)


def _add_random_weights(
    writer: gguf.GGUFWriter, random: np.random.Generator, *, context_length: int, layers: int, dims: int
) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        # Large enough that attention looks at something: a vector then depends on the whole text.
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * 2 / columns**0.5).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(dims, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(dims, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, dims)
    matrix("position_embd.weight", context_length, dims)
    matrix("token_types.weight", 2, dims)
    norm("token_embd_norm")
    for layer in range(layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_output_norm")
        norm(f"{block}.layer_output_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{name}.weight", dims, dims)
        matrix(f"{block}.ffn_up.weight", 2 * dims, dims)
        matrix(f"{block}.ffn_down.weight", dims, 2 * dims)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
