"""Loading a GGUF, and the facts about it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from pathlib import Path

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, LoadProgressCallback, RequestError
from llmvisor_runtimes.llamacpp.context import LlamaContext, Part
from llmvisor_runtimes.llamacpp.cores import available_cores
from llmvisor_runtimes.llamacpp.log import LlamaLog
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.options import decode_options
from llmvisor_runtimes.llamacpp.parked import ParkedSequences
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Load, Memory, ModelInfo, ModelOptions
from llmvisor_runtimes.template import ChatTemplate

_BYTES_PER_MB = 1024 * 1024
_SEQUENCES_MAX = 256
"""LLAMA_MAX_SEQ of llama.cpp."""
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_SPLIT_MODE = {"none": 0, "layer": 1, "row": 2}
_CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
_OUT_OF_MEMORY = ("failed to allocate", "unable to allocate", "out of memory", "cannot allocate", "bad_alloc", "mlock")


class LlamaModel:
    """A loaded model with its context."""

    def __init__(self, load: Load, progress: LoadProgressCallback, *, version: str) -> None:
        """Raises `LoadError`."""
        self.options = decode_options(load.options.options)
        self.slots = load.options.parallel
        self._gpu_layers = load.options.n_gpu_layers
        self._check(load)
        self._log = LlamaLog()
        self._log.install()
        llama_cpp.llama_backend_init()
        started = time.perf_counter()
        self._progress = progress
        self._model = self._load_weights(load)
        try:
            self.vocabulary = Vocabulary(self._model)
            self._trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
            self.context = self._make_context(load.options)
            self.template, self._template_sha256 = self._chat_template()
            self._warm_up()
        except BaseException:
            llama_cpp.llama_model_free(self._model)
            raise
        self.can_cut = not (
            llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        )
        self.info = self._describe(time.perf_counter() - started, version)
        self._log.loading = False

    def close(self) -> None:
        """Free everything."""
        self.context.close()
        llama_cpp.llama_model_free(self._model)

    @property
    def sequences(self) -> int:
        """Sequence ids: one for each slot and some for the idle cache."""
        return min(_SEQUENCES_MAX, self.slots + self.options.idle_sequences)

    def parked(self) -> ParkedSequences | None:
        """Room for idle sequences outside the context; None where that is a GPU's memory, which copies have far to."""
        on_gpu = llama_cpp.llama_supports_gpu_offload() and self._gpu_layers and self.options.offload_kqv
        if on_gpu or not self.options.idle_cache_mb:
            return None
        bytes_per_token = max(1, self.info.memory.kv_bytes // self.context.n_ctx)
        return ParkedSequences(bytes_max=self.options.idle_cache_mb * _BYTES_PER_MB, bytes_per_token=bytes_per_token)

    def _check(self, load: Load) -> None:
        """What can be told without llama.cpp, which says less about it."""
        path = Path(load.path)
        if not path.is_file():
            raise LoadError(f"there is no model file at {load.path}", permanent=True)
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise LoadError(f"{load.path} is not a GGUF file: it begins with {magic!r}", permanent=True)
        if not 1 <= self.slots <= _SEQUENCES_MAX:
            raise LoadError(f"parallel is {self.slots}, but llama.cpp takes 1 to {_SEQUENCES_MAX}", permanent=True)

    # ------------------------------------------------------------------------------------------------------- loading

    def _load_weights(self, load: Load) -> int:
        options = load.options
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.load_mode = int(options.use_mmap) + 2 * int(options.use_mlock)
        params.split_mode = _SPLIT_MODE[self.options.split_mode]
        params.main_gpu = self.options.main_gpu
        size = os.path.getsize(load.path)

        @llama_cpp.llama_progress_callback
        def on_progress(part: float, _data: object) -> bool:
            self._progress("weights", int(part * size), size, "bytes")
            return True

        params.progress_callback = on_progress
        model = llama_cpp.llama_model_load_from_file(os.fsencode(load.path), params)
        if not model:
            raise self._failure(f"{Path(load.path).name} cannot be loaded")
        if not llama_cpp.llama_model_has_decoder(model) or llama_cpp.llama_model_has_encoder(model):
            llama_cpp.llama_model_free(model)
            raise LoadError("the model does not generate text by itself (it has an encoder)", permanent=True)
        return model

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
        params.n_outputs_max = min(params.n_batch, self.slots + limits.scored_prompt_step_tokens)
        params.n_threads = threads
        params.n_threads_batch = own.n_threads_batch or threads
        params.flash_attn_type = _FLASH_ATTENTION[own.flash_attn]
        params.type_k = _CACHE_TYPES[own.type_k]
        params.type_v = _CACHE_TYPES[own.type_v]
        params.rope_freq_base = own.rope_freq_base
        params.rope_freq_scale = own.rope_freq_scale
        params.offload_kqv = own.offload_kqv
        params.kv_unified = True
        params.swa_full = True  # without it the beginning of a sequence is gone, and no prefix can be shared
        params.no_perf = True
        try:
            return LlamaContext(self._model, params, n_vocab=self.vocabulary.size)
        except MemoryError:
            raise self._failure(f"there is no room for a context of {params.n_ctx} tokens") from None

    def _warm_up(self) -> None:
        """Compute one token, so that the first request finds the weights in memory."""
        self._progress("warmup", 0, 0, "steps")
        token = max(0, self.vocabulary.bos)
        part = Part(sequence=0, position=0, tokens=[token], every_logit=False, last_logit=True)
        status = self.context.decode([part])
        if status:
            raise self._failure(f"the model does not compute: llama_decode gave {status}")
        self.context.logits(1)
        self.context.clear()

    def _failure(self, what: str) -> LoadError:
        reason = self._log.reason()
        lacks_memory = any(sign in reason.lower() for sign in _OUT_OF_MEMORY)
        return LoadError(f"{what}: {reason}", permanent=not lacks_memory)

    # --------------------------------------------------------------------------------------------------------- facts

    def _chat_template(self) -> tuple[ChatTemplate | None, str | None]:
        own = llama_cpp.llama_model_chat_template(self._model, None)
        source = self.options.chat_template or (own.decode("utf-8", "replace") if own else "")
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

    def _describe(self, load_seconds: float, version: str) -> ModelInfo:
        file_type = llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self._model)) or b""
        return ModelInfo(
            architecture=self._metadata("general.architecture"),
            parameters=llama_cpp.llama_model_n_params(self._model),
            quantization=file_type.decode(),
            context_length=self._trained,
            n_ctx=self.context.n_ctx,
            slots=self.slots,
            vocabulary=self.vocabulary.size,
            capabilities=[*(["chat"] if self.template else []), "completions", "tokenize"],
            memory=Memory(
                weights_bytes=llama_cpp.llama_model_size(self._model),
                kv_bytes=self._log.buffer_bytes({"KV", "RS"}),
                compute_bytes=self._log.buffer_bytes({"compute"}),
            ),
            load_seconds=load_seconds,
            backend="llamacpp",
            backend_version=version,
            embedding_dimension=llama_cpp.llama_model_n_embd(self._model),
            chat_template_sha256=self._template_sha256,
        )

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""
