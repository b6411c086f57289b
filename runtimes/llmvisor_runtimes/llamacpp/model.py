"""Loading a GGUF, and the facts about it."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, LoadProgressCallback, RequestError
from llmvisor_runtimes.cores import available_cores
from llmvisor_runtimes.llamacpp.adapters import Adapters
from llmvisor_runtimes.llamacpp.context import LlamaContext, Part
from llmvisor_runtimes.llamacpp.draft import DraftModel
from llmvisor_runtimes.llamacpp.infill import Infill
from llmvisor_runtimes.llamacpp.media_encoder import MediaEncoder
from llmvisor_runtimes.llamacpp.media_prompt import MediaReader
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.parked import ParkedSequences
from llmvisor_runtimes.llamacpp.projector import Projector
from llmvisor_runtimes.llamacpp.saved_state import StateFile, file_facts, state_path
from llmvisor_runtimes.llamacpp.weights import SEQUENCES_MAX, Weights
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.protocol import Load, Memory, ModelInfo, ModelOptions
from llmvisor_runtimes.template import ChatTemplate
from llmvisor_runtimes.toolcalls import family_of

_BYTES_PER_MB = 1024 * 1024
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}


class LlamaModel:
    """A loaded model with its context."""

    def __init__(self, weights: Weights, load: Load, progress: LoadProgressCallback, *, version: str) -> None:
        """Takes the weights over, and frees them where it raises `LoadError`."""
        self.options = weights.options
        self.slots = load.options.parallel
        self._gpu_layers = load.options.n_gpu_layers
        self._progress = progress
        self._weights = weights
        self._model = weights.pointer
        self._log = weights.log
        self.vocabulary = weights.vocabulary
        self._trained = weights.trained_tokens
        try:
            self.adapters = Adapters(weights, self.options.adapters)
            self.context = self._make_context(load.options)
            self.template, self._template_sha256 = self._chat_template()
            self.draft = self._load_draft()
            self._warm_up()
            self.media = self._load_media()
        except BaseException:
            weights.close()
            raise
        self.can_cut = not (
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self.info = self._describe(time.perf_counter() - weights.started_at, version)
        self._log.loading = False

    def close(self) -> None:
        """Free everything."""
        if self.draft:
            self.draft.close()
        self.context.close()
        self._weights.close()

    @property
    def sequences(self) -> int:
        """Sequence ids: one for each slot and some for the idle cache."""
        return min(SEQUENCES_MAX, self.slots + self.options.idle_sequences)

    def parked(self) -> ParkedSequences | None:
        """Room for idle sequences outside the context; None where that is a GPU's memory, which copies have far to."""
        on_gpu = llama_cpp.llama_supports_gpu_offload() and self._gpu_layers and self.options.offload_kqv
        if on_gpu or not self.options.idle_cache_mb:
            return None
        bytes_per_token = max(1, self.info.memory.kv_bytes // self.context.n_ctx)
        return ParkedSequences(bytes_max=self.options.idle_cache_mb * _BYTES_PER_MB, bytes_per_token=bytes_per_token)

    def media_reader(self) -> MediaReader | None:
        """Makes prompts of conversations with images and sounds; None where the model reads none."""
        if self.media is None:
            return None
        batch_tokens_max = min(self.context.n_batch, self._n_ubatch)
        return MediaReader(self.media.projector, self.vocabulary, batch_tokens_max=batch_tokens_max)

    def state_file(self, load: Load) -> StateFile | None:
        """Where the cache is kept while the model is not loaded; None where it is not."""
        if not load.options.state_dir or not self.can_cut:
            return None
        own = self.options
        computed_with = (own.type_k, own.type_v, own.rope_freq_base, own.rope_freq_scale, own.flash_attn)
        placed = (self._gpu_layers, own.offload_kqv, own.split_mode, own.main_gpu)
        adapters = {name: file_facts(adapter.path) for name, adapter in sorted(own.adapters.items())}
        identity = (file_facts(load.path), self.context.n_ctx, computed_with, placed, adapters)
        version = f"{self.info.backend_version} {llama_cpp.llama_print_system_info()!r}"
        path = state_path(load.options.state_dir, load.model, load.path)
        return StateFile(path, msgspec.msgpack.encode((identity, version)))

    # ------------------------------------------------------------------------------------------------------- loading

    def _make_context(self, options: ModelOptions) -> LlamaContext:
        self._progress("context", 0, 0, "bytes")
        own = self.options
        threads = options.n_threads or available_cores()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options.n_ctx or self._trained
        if params.n_ctx > self._trained:
            print(
                f"n_ctx is {params.n_ctx}, but the model was trained for {self._trained} tokens: text beyond that "
                "may turn to nonsense",
                file=sys.stderr,
                flush=True,
            )
        params.n_batch = min(options.n_batch, params.n_ctx)
        params.n_ubatch = min(own.n_ubatch, params.n_batch)
        params.n_seq_max = self.sequences
        # The default is a row of the vocabulary's size for each token of a batch: half a gigabyte for a large one.
        rows_max = min(params.n_batch, self.slots + limits.scored_prompt_step_tokens)
        params.n_outputs_max = max(rows_max, params.n_seq_max)  # llama.cpp ends the process for less
        params.n_threads = threads
        params.n_threads_batch = own.n_threads_batch or threads
        params.flash_attn_type = FLASH_ATTENTION[own.flash_attn]
        params.type_k = CACHE_TYPES[own.type_k]
        params.type_v = CACHE_TYPES[own.type_v]
        params.rope_freq_base = own.rope_freq_base
        params.rope_freq_scale = own.rope_freq_scale
        params.offload_kqv = own.offload_kqv
        params.kv_unified = True
        params.swa_full = True  # without it the beginning of a sequence is gone, and no prefix can be shared
        params.no_perf = True
        self._context_params = params
        self._n_ubatch = params.n_ubatch
        try:
            return LlamaContext(self._model, params, n_vocab=self.vocabulary.size)
        except MemoryError:
            raise self._weights.failure(f"there is no room for a context of {params.n_ctx} tokens") from None

    def _load_draft(self) -> DraftModel | None:
        path = self.options.draft_model
        if path is None:
            return None
        self._progress("draft", 0, 0, "bytes")
        params = self._context_params
        params.n_seq_max = self.slots
        params.n_outputs_max = self.slots
        return DraftModel(self._weights, path, n_gpu_layers=self._gpu_layers, params=params, slots=self.slots)

    def _load_media(self) -> MediaEncoder | None:
        path = self.options.mmproj
        if path is None:
            return None
        if self.template is None:
            why = "the model has no chat template, which would say where images stand; options.chat_template takes one"
            print(f"the mmproj is not loaded: {why}", file=sys.stderr, flush=True)
            return None
        self._progress("mmproj", 0, 0, "bytes")
        on_gpu = bool(llama_cpp.llama_supports_gpu_offload() and self._gpu_layers)
        threads = self._context_params.n_threads

        def make(between: Callable[[], bool] | None) -> Projector:
            return Projector(self._weights, path, threads=threads, on_gpu=on_gpu, between=between)

        return MediaEncoder(make, in_pieces=not on_gpu)

    def _warm_up(self) -> None:
        """Compute one token, so that the first request finds the weights in memory."""
        self._progress("warmup", 0, 0, "steps")
        token = max(0, self.vocabulary.bos)
        part = Part(sequence=0, position=0, tokens=[token], every_logit=False, last_logit=True)
        status = self.context.decode([part])
        if status:
            raise self._weights.failure(f"the model does not compute: llama_decode gave {status}")
        self.context.logits(1)
        self.context.clear()

    # --------------------------------------------------------------------------------------------------------- facts

    def _chat_template(self) -> tuple[ChatTemplate | None, str | None]:
        own = llama_cpp.llama_model_chat_template(self._model, None)
        source = self.options.chat_template or (own.decode("utf-8", "replace") if own else "")
        self.format = OutputFormat(self.vocabulary, family_of(source))
        if not source:
            return None, None
        vocabulary = self.vocabulary
        try:
            template = ChatTemplate(
                source, bos_token=vocabulary.text(vocabulary.bos), eos_token=vocabulary.text(vocabulary.eos)
            )
        except RequestError as error:
            hint = "options.chat_template takes another"
            raise LoadError(f"the chat template cannot be used: {error.message} ({hint})", permanent=True) from error
        return template, hashlib.sha256(source.encode()).hexdigest()

    def _capabilities(self) -> list[str]:
        found = [*(["chat", "tools"] if self.template else []), "completions", "tokenize", "structured_output"]
        if Infill(self.vocabulary).available:
            found.append("infill")
        if self.adapters:
            found.append("adapters")
        if self.media:
            found += [*(["vision"] if self.media.projector.sees else [])]
            found += [*(["audio"] if self.media.projector.hears else [])]
        return found

    def _describe(self, load_seconds: float, version: str) -> ModelInfo:
        return ModelInfo(
            architecture=self._weights.architecture,
            parameters=llama_cpp.llama_model_n_params(self._model),
            quantization=self._weights.quantization,
            context_length=self._trained,
            n_ctx=self.context.n_ctx,
            slots=self.slots,
            vocabulary=self.vocabulary.size,
            capabilities=self._capabilities(),
            memory=Memory(
                weights_bytes=llama_cpp.llama_model_size(self._model)
                + (self.draft.weights_bytes if self.draft else 0)
                + (self.media.projector.bytes if self.media else 0),
                kv_bytes=self._log.buffer_bytes({"KV", "RS"}),
                compute_bytes=self._log.buffer_bytes({"compute"}),
            ),
            load_seconds=load_seconds,
            backend="llamacpp",
            backend_version=version,
            embedding_dimension=llama_cpp.llama_model_n_embd(self._model),
            chat_template_sha256=self._template_sha256,
        )
