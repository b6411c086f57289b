"""A GGUF's weights in memory, and what they are of: text that goes on, or texts that are encoded."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Literal

from llmvisor_runtimes.backend import LoadError, LoadProgressCallback
from llmvisor_runtimes.llamacpp.log import LlamaLog
from llmvisor_runtimes.llamacpp.native import binding, llama_cpp
from llmvisor_runtimes.llamacpp.options import LlamaCppOptions, read_options
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Load

SEQUENCES_MAX = 256
"""LLAMA_MAX_SEQ of llama.cpp."""

Pooling = Literal["mean", "cls", "last", "rank"]
"""How the vectors of a text's tokens become one, or (`rank`) one score."""

_POOLING: tuple[Literal["none"] | Pooling, ...] = ("none", "mean", "cls", "last", "rank")
"""By llama.cpp's numbers."""
ENCODERS = frozenset(
    {
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"),
        *("nomic-bert", "nomic-bert-moe", "t5encoder"),
    }
)
"""Architectures that read a whole text at once and write none."""
_DIFFUSERS = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_CLASSIFIERS = (b"cls.weight", b"cls.output.weight")
_SPLIT_MODE = {"none": 0, "layer": 1, "row": 2}
_OUT_OF_MEMORY = ("failed to allocate", "unable to allocate", "out of memory", "cannot allocate", "bad_alloc", "mlock")


class Weights:
    """A loaded file with its vocabulary, before anything is computed with it."""

    def __init__(self, load: Load, progress: LoadProgressCallback) -> None:
        """Raises `LoadError`."""
        self.started_at = time.perf_counter()
        self.options: LlamaCppOptions = read_options(load.options.options)
        _check(load)
        self.log = LlamaLog()
        self.log.install()
        llama_cpp.llama_backend_init()
        self.pointer = self._read(load, progress)
        try:
            self._refuse_pairs()
            self.vocabulary = Vocabulary(self.pointer)
            self.trained_tokens = int(llama_cpp.llama_model_n_ctx_train(self.pointer))
            self.architecture = self.metadata("general.architecture")
            self.pooling: Pooling | None = self._pooling(load)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        llama_cpp.llama_model_free(self.pointer)

    def metadata(self, key: str) -> str:
        """A value of the file's metadata as text; empty where there is none."""
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        said = self.metadata(f"{self.architecture}.attention.causal")
        return said != "false" and self.architecture not in ENCODERS | _DIFFUSERS

    @property
    def quantization(self) -> str:
        """`Q4_K - Medium`, …"""
        name = llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self.pointer)) or b""
        return name.decode()

    def failure(self, what: str) -> LoadError:
        """An error with the reason that llama.cpp has logged; not permanent where memory lacks."""
        reason = self.log.reason()
        lacks_memory = any(sign in reason.lower() for sign in _OUT_OF_MEMORY)
        return LoadError(f"{what}: {reason}", permanent=not lacks_memory)

    def _read(self, load: Load, progress: LoadProgressCallback) -> int:
        options = load.options
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.load_mode = int(options.use_mmap) + 2 * int(options.use_mlock)
        params.split_mode = _SPLIT_MODE[self.options.split_mode]
        params.main_gpu = self.options.main_gpu
        size = os.path.getsize(load.path)

        @llama_cpp.llama_progress_callback
        def on_progress(part: float, _data: object) -> bool:
            progress("weights", int(part * size), size, "bytes")
            return True

        params.progress_callback = on_progress
        model = llama_cpp.llama_model_load_from_file(os.fsencode(load.path), params)
        if not model:
            raise self.failure(f"{Path(load.path).name} cannot be loaded")
        return model

    def _refuse_pairs(self) -> None:
        """Refuse a decoder that needs the output of an encoder beside it."""
        if llama_cpp.llama_model_has_encoder(self.pointer) and llama_cpp.llama_model_has_decoder(self.pointer):
            raise LoadError("the model does not generate text by itself (it has an encoder)", permanent=True)

    def _pooling(self, load: Load) -> Pooling | None:
        """How texts are encoded; None for a model that goes on with them.

        The options decide, else the file's metadata, else whether an encoder has a classifier: what converts
        rerankers leaves the metadata out.
        """
        wanted = self.options.pooling or self._own_pooling()
        if load.options.embedding and wanted in {None, "none"}:
            wanted = "last" if self.is_causal else "mean"
        has_classifier = _has_tensor(load.path, _CLASSIFIERS)
        if wanted == "rank" and not has_classifier and self.metadata("split.count") in {"", "0", "1"}:
            raise LoadError("the model scores no pairs: it has no classifier, whatever its pooling is", permanent=True)
        if wanted is not None and wanted != "none":
            return wanted
        if self.architecture not in ENCODERS:
            return None
        if wanted is None and has_classifier:
            return "rank"
        raise LoadError(
            f"the file does not say how the vectors of its tokens ({self.architecture}) become one of the text; "
            "options.pooling takes mean, cls, last or rank",
            permanent=True,
        )

    def _own_pooling(self) -> Literal["none"] | Pooling | None:
        value = self.metadata(f"{self.architecture}.pooling_type")
        return _POOLING[int(value)] if value.isdecimal() and int(value) < len(_POOLING) else None


def _check(load: Load) -> None:
    """What can be told without llama.cpp, which says less about it."""
    path = Path(load.path)
    if not path.is_file():
        raise LoadError(f"there is no model file at {load.path}", permanent=True)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise LoadError(f"{load.path} is not a GGUF file: it begins with {magic!r}", permanent=True)
    parallel = load.options.parallel
    if not 1 <= parallel <= SEQUENCES_MAX:
        raise LoadError(f"parallel is {parallel}, but llama.cpp takes 1 to {SEQUENCES_MAX}", permanent=True)


class _GgufParams(ctypes.Structure):
    """`gguf_init_params` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _has_tensor(path: str, names: tuple[bytes, ...]) -> bool:
    """Whether a file has a tensor of one of these names; llama.h does not tell."""
    libggml = binding("_ggml").libggml
    libggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _GgufParams]
    libggml.gguf_init_from_file.restype = ctypes.c_void_p
    libggml.gguf_find_tensor.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    libggml.gguf_find_tensor.restype = ctypes.c_int64
    libggml.gguf_free.argtypes = [ctypes.c_void_p]
    gguf = libggml.gguf_init_from_file(os.fsencode(path), _GgufParams(True, None))
    if not gguf:
        return False
    try:
        return any(libggml.gguf_find_tensor(gguf, name) >= 0 for name in names)
    finally:
        libggml.gguf_free(gguf)
