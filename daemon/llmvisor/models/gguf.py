"""What a GGUF file says of itself, read from its header before anything loads it."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from llmvisor.errors import ModelLoadFailed
from llmvisor.models import gguf_types
from llmvisor.models.file_kinds import recognised
from llmvisor.models.gguf_reader import MAGIC, Array, Gguf, Malformed, TensorTable, parse
from llmvisor_runtimes.protocol import Memory

T = TypeVar("T")

MICRO_BATCH_TOKENS = 512
"""llama.cpp computes a batch in parts of at most this many tokens."""
CACHE_CELLS_MULTIPLE = 256
NUMBER_MAX = 2**32 - 1
"""llama.cpp reads the numbers of an architecture into 32 bits; a larger one counts as not said."""
LAYERS_MAX = 512
BYTES_MAX = 2**60
"""What a file of absurd numbers is estimated at: enough to be refused, and small enough to be written as JSON."""
LOGIT_ROWS = 128
"""Rows of logits that one step keeps: one for each slot, and some of a prompt whose log-probabilities are wanted."""

ModelType = Literal["llm", "embeddings", "reranker", "unknown"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]

_POOLING: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")
_ENCODERS = frozenset(
    {
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"),
        *("nomic-bert", "nomic-bert-moe", "t5encoder"),
    }
)
"""Architectures that read a whole text at once and keep no cache."""
_CLASSIFIERS = frozenset({"cls.weight", "cls.output.weight"})
_GENERAL = frozenset(
    {
        *("general.alignment", "general.architecture", "general.basename", "general.name", "general.size_label"),
        *("general.type", "tokenizer.chat_template", "tokenizer.ggml.model"),
    }
)
_BY_LAYER = (".attention.head_count", ".attention.head_count_kv", ".feed_forward_length")


class GgufError(ModelLoadFailed):
    """A file is no GGUF that can be loaded. The message begins with its path and says what is wrong."""


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one file. Of a split model each file counts its own tensors. 0 and None are "not said"."""

    version: int
    architecture: str
    name: str | None
    type: ModelType
    quantization: str
    """`Q4_K_M`, …"""
    parameters: int
    """Elements of all tensors."""
    weights_bytes: int
    file_bytes: int
    context_length: int
    """Tokens, as trained."""
    embedding_length: int
    feed_forward_length: int
    block_count: int
    head_count: int
    """The largest of all layers, as are the next three."""
    head_count_kv: int
    key_length: int
    """Elements of one head's key."""
    value_length: int
    kv_heads: int
    """Key-value heads of all layers together."""
    causal: bool
    """Whether a token sees only those before it; without that there is no cache."""
    vocabulary: int
    tokenizer_model: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None
    chat_template_sha256: str | None
    pooling: Pooling | None
    split_count: int = 1
    """Files that the model is split into."""


def read_header(path: Path) -> GgufHeader:
    """The header of a file. Raises `GgufError` for whatever is no complete GGUF. Blocks on the disk."""
    return _told(path, lambda: _header(*_parsed(path)))


def read_tensors(path: Path) -> TensorTable:
    """The tensors of a file, which may say nothing else, as the later files of a split model. Raises `GgufError`."""
    return _told(path, lambda: _parsed(path)[0].tensors)


def _told(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Malformed as error:
        raise GgufError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise GgufError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:  # a ValueError is a path with a null in it
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GgufError(f"{path}: it cannot be read: {reason}") from error


def estimate_memory(
    header: GgufHeader,
    *,
    n_ctx: int,
    n_batch: int,
    key_element_bytes: float = 2.0,
    value_element_bytes: float = 2.0,
) -> Memory:
    """About what llama.cpp takes for a model with a context of `n_ctx` tokens (0: as trained).

    Weights and cache are what it allocates, to the byte for the usual transformers; models with sliding windows or
    recurrent layers take less than is said here. The compute buffers are a guess that holds with flash attention.
    The defaults are a cache of 16-bit floats; q8_0 has 34/32 bytes for each element.
    """
    if not header.causal:
        return _estimate_encoder(header, n_ctx=n_ctx, n_batch=n_batch)
    tokens = math.ceil((n_ctx or header.context_length) / CACHE_CELLS_MULTIPLE) * CACHE_CELLS_MULTIPLE
    head_bytes = header.key_length * key_element_bytes + header.value_length * value_element_bytes
    batch = min(n_batch or MICRO_BATCH_TOKENS, MICRO_BATCH_TOKENS)
    # For each token of a part: the attention mask over the context, and some rows of activations.
    mask_bytes = 2 * tokens
    activation_bytes = 4 * (2 * header.feed_forward_length + 6 * header.embedding_length)
    logits_bytes = 4 * header.vocabulary * min(batch, LOGIT_ROWS)
    return Memory(
        weights_bytes=header.weights_bytes,
        kv_bytes=min(int(tokens * header.kv_heads * head_bytes), BYTES_MAX),
        compute_bytes=min(batch * (mask_bytes + activation_bytes) + logits_bytes, BYTES_MAX),
    )


def _estimate_encoder(header: GgufHeader, *, n_ctx: int, n_batch: int) -> Memory:
    """A whole text is one part: its mask is a square, and there is room for the logits of each of its tokens."""
    longest = min(n_ctx or NUMBER_MAX, header.context_length or NUMBER_MAX)
    tokens = max(longest if longest < NUMBER_MAX else 0, n_batch or MICRO_BATCH_TOKENS)
    activation_bytes = 4 * (2 * header.feed_forward_length + 6 * header.embedding_length)
    compute_bytes = tokens * (2 * tokens + activation_bytes + 4 * header.vocabulary)
    return Memory(weights_bytes=header.weights_bytes, kv_bytes=0, compute_bytes=min(compute_bytes, BYTES_MAX))


def _parsed(path: Path) -> tuple[Gguf, int]:
    """A file's header, and its bytes."""
    # A pipe without a writer would hold an open without O_NONBLOCK for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise Malformed("it is a folder, not a GGUF file")
        if not stat.S_ISREG(status.st_mode):
            raise Malformed("it is no regular file")
        beginning = os.pread(descriptor, 512, 0)
        if not beginning.startswith(MAGIC):
            raise Malformed(f"it is {recognised(beginning)}, not a GGUF file")
        return parse(descriptor, status.st_size, wanted=_wanted), status.st_size
    finally:
        os.close(descriptor)


def _wanted(key: str) -> bool:
    return key in _GENERAL or key.endswith(_BY_LAYER)


def _header(gguf: Gguf, file_bytes: int) -> GgufHeader:
    facts = _Facts(gguf)
    architecture = facts.text("general.architecture")
    if architecture is None:
        raise Malformed("it does not say its architecture (general.architecture)")
    split_count = max(1, facts.number("split.count"))
    if not gguf.tensors.names and split_count == 1:
        raise Malformed("it holds no tensors, only a vocabulary or metadata")
    facts.check_layers()
    template = facts.text("tokenizer.chat_template")
    heads, kv_heads = facts.by_layer("attention.head_count"), facts.by_layer("attention.head_count_kv")
    kv_heads = kv_heads or heads
    head_length = facts.of("embedding_length") // max(heads) if heads and max(heads) else 0
    pooling = facts.pooling()
    return GgufHeader(
        version=gguf.version,
        architecture=architecture,
        name=facts.text("general.name") or facts.text("general.basename"),
        type=_type(facts, architecture, pooling, gguf.tensors.names),
        quantization=_quantization(gguf),
        parameters=sum(gguf.tensors.elements_by_type.values()),
        weights_bytes=gguf.tensors.data_bytes,
        file_bytes=file_bytes,
        context_length=facts.of("context_length"),
        embedding_length=facts.of("embedding_length"),
        feed_forward_length=max(facts.by_layer("feed_forward_length"), default=0),
        block_count=facts.of("block_count"),
        head_count=max(heads, default=0),
        head_count_kv=max(kv_heads, default=0),
        key_length=facts.of("attention.key_length") or head_length,
        value_length=facts.of("attention.value_length") or head_length,
        kv_heads=sum(kv_heads),
        causal=architecture not in _ENCODERS and gguf.metadata.get(f"{architecture}.attention.causal") is not False,
        vocabulary=facts.of("vocab_size") or facts.count("tokenizer.ggml.tokens") or gguf.tensors.embedding_rows,
        tokenizer_model=facts.text("tokenizer.ggml.model"),
        bos_token_id=facts.token("bos"),
        eos_token_id=facts.token("eos"),
        chat_template=template,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        pooling=pooling,
        split_count=split_count,
    )


class _Facts:
    """Metadata by key, whatever type a value has: one of another type than it should be counts as not there."""

    def __init__(self, gguf: Gguf) -> None:
        self._metadata = gguf.metadata
        self._prefix = f"{self.text('general.architecture')}."

    def text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        return value if isinstance(value, str) and value else None

    def number(self, key: str) -> int:
        value = self._metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= NUMBER_MAX else 0

    def of(self, key: str) -> int:
        """A number that belongs to the architecture."""
        return self.number(self._prefix + key)

    def by_layer(self, key: str) -> list[int]:
        """A number for each layer, also where the file gives one for all."""
        value = self._metadata.get(self._prefix + key)
        if isinstance(value, Array):
            return [number for number in value.values if isinstance(number, int) and 0 <= number <= NUMBER_MAX]
        return [number] * min(self.of("block_count"), LAYERS_MAX) if (number := self.of(key)) else []

    def check_layers(self) -> None:
        """llama.cpp ends its process over a number of layers that it has no room for."""
        key = f"{self._prefix}block_count"
        layers = self._metadata.get(key)
        if isinstance(layers, int) and not 1 <= layers <= LAYERS_MAX:
            raise Malformed(f"{key} is {layers}, and can be 1 to {LAYERS_MAX}")

    def count(self, key: str) -> int:
        value = self._metadata.get(key)
        return value.count if isinstance(value, Array) else 0

    def token(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX else None

    def pooling(self) -> Pooling | None:
        value = self._metadata.get(self._prefix + "pooling_type")
        return _POOLING[value] if isinstance(value, int) and 0 <= value < len(_POOLING) else None


def _type(facts: _Facts, architecture: str, pooling: Pooling | None, tensors: frozenset[str]) -> ModelType:
    if facts.text("general.type") in {"adapter", "mmproj", "vocab", "imatrix"} or architecture == "clip":
        return "unknown"
    if pooling == "rank" or (architecture in _ENCODERS and tensors & _CLASSIFIERS):
        return "reranker"
    if architecture in _ENCODERS or pooling in {"mean", "cls", "last"}:
        return "embeddings"
    return "llm"


def _quantization(gguf: Gguf) -> str:
    """What the file says, else the type that most elements are of."""
    value = gguf.metadata.get("general.file_type")
    if isinstance(value, int) and (name := gguf_types.FILE_TYPES.get(value)):
        return name
    elements = gguf.tensors.elements_by_type
    return max(elements, key=lambda kind: elements[kind], default="unknown")
