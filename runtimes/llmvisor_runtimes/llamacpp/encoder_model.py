"""Loading a GGUF that encodes texts, and the facts about it."""

from __future__ import annotations

import sys
import time

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadProgressCallback
from llmvisor_runtimes.cores import available_cores
from llmvisor_runtimes.llamacpp.context import DECODED
from llmvisor_runtimes.llamacpp.encoder_context import EncoderContext
from llmvisor_runtimes.llamacpp.encoder_text import EncoderText
from llmvisor_runtimes.llamacpp.model import CACHE_TYPES, FLASH_ATTENTION
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.weights import Pooling, Weights
from llmvisor_runtimes.protocol import Load, Memory, ModelInfo, ModelOptions

_POOLING: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
_FLOAT_BYTES = 4
_BYTES_PER_MB = 1024 * 1024
_SOFTMAX = frozenset({"qwen3", "qwen3vl"})
"""Architectures whose scores llama.cpp turns into probabilities of the labels."""


class EncoderModel:
    """A loaded model with a context for whole texts."""

    template = None

    def __init__(self, weights: Weights, load: Load, progress: LoadProgressCallback, *, version: str) -> None:
        """Takes the weights over, and frees them where it raises `LoadError`."""
        assert weights.pooling is not None, "only for models that encode"
        self._weights = weights
        self._progress = progress
        self.pooling: Pooling = weights.pooling
        self.vocabulary = weights.vocabulary
        self.gives_probabilities = self.pooling == "rank" and weights.architecture in _SOFTMAX
        """Of a pair's fitting, where others give a logit."""
        self.tokens_max = min(weights.trained_tokens, load.options.n_ctx or weights.trained_tokens)
        """Of one text."""
        self.batch_tokens = load.options.n_batch
        """Of texts that are computed together; one may be longer."""
        try:
            self.context = self._make_context(load.options)
            self.text = EncoderText(weights, tokens_max=self.tokens_max)
            self._warm_up()
        except BaseException:
            weights.close()
            raise
        self.info = self._describe(version)
        weights.log.loading = False

    def close(self) -> None:
        """Free everything."""
        self.context.close()
        self._weights.close()

    def _make_context(self, options: ModelOptions) -> EncoderContext:
        self._progress("context", 0, 0, "bytes")
        own = self._weights.options
        threads = options.n_threads or available_cores()
        params = llama_cpp.llama_context_default_params()
        params.embeddings = True
        params.pooling_type = _POOLING[self.pooling]
        params.n_seq_max = limits.encoder_sequences_max
        # A text that is seen whole has to be in one piece, and a cache holds all texts of a batch.
        params.n_ctx = max(self.tokens_max, self.batch_tokens)
        params.n_batch = params.n_ubatch = params.n_ctx
        params.n_threads = threads
        params.n_threads_batch = own.n_threads_batch or threads
        params.flash_attn_type = FLASH_ATTENTION[own.flash_attn]
        params.type_k = CACHE_TYPES[own.type_k]
        params.type_v = CACHE_TYPES[own.type_v]
        params.rope_freq_base = own.rope_freq_base
        params.rope_freq_scale = own.rope_freq_scale
        params.offload_kqv = own.offload_kqv
        params.kv_unified = True
        params.no_perf = True
        if self.pooling in {"last", "rank"} and self._weights.is_causal:
            # Its texts may come in pieces.
            params.n_batch = max(self.batch_tokens, limits.encoder_sequences_max)
            params.n_ubatch = min(own.n_ubatch, params.n_batch)
        else:
            self._tell_of_logits()
        try:
            return EncoderContext(self._weights.pointer, params, n_vocab=self.vocabulary.size)
        except MemoryError:
            raise self._weights.failure(f"there is no room for texts of {self.tokens_max} tokens") from None

    def _tell_of_logits(self) -> None:
        """llama.cpp keeps room for the logits of every token of a batch, though nobody reads them."""
        size = self.tokens_max * self.vocabulary.size * _FLOAT_BYTES
        if size > limits.encoder_logits_bytes_told:
            print(
                f"a text of {self.tokens_max} tokens will take {size // _BYTES_PER_MB} MB beside the model; "
                "a smaller n_ctx bounds that",
                file=sys.stderr,
                flush=True,
            )

    def _warm_up(self) -> None:
        """Encode an empty text, so that the first request finds the weights in memory."""
        self._progress("warmup", 0, 0, "steps")
        status = self.context.encode([self.text.empty or [0]])
        if status != DECODED:
            raise self._weights.failure(f"the model does not compute: llama.cpp gave {status}")
        self.context.rows(1)

    def _describe(self, version: str) -> ModelInfo:
        weights = self._weights
        return ModelInfo(
            architecture=weights.architecture,
            parameters=llama_cpp.llama_model_n_params(weights.pointer),
            quantization=weights.quantization,
            context_length=weights.trained_tokens,
            n_ctx=self.tokens_max,
            slots=limits.encoder_sequences_max,
            vocabulary=self.vocabulary.size,
            capabilities=["rerank" if self.pooling == "rank" else "embedding", "tokenize"],
            memory=Memory(
                weights_bytes=llama_cpp.llama_model_size(weights.pointer),
                kv_bytes=weights.log.buffer_bytes({"KV", "RS"}),
                compute_bytes=weights.log.buffer_bytes({"compute"}),
            ),
            load_seconds=time.perf_counter() - weights.started_at,
            backend="llamacpp",
            backend_version=version,
            embedding_dimension=0 if self.pooling == "rank" else self.context.width,
        )
