"""Loading an MLX model, and the facts about it."""

# pyright: standard
# mlx and mlx-lm ship no complete types.

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import get_total_parameters, load_model

from llmvisor_runtimes.backend import LoadError, LoadProgressCallback, RequestError
from llmvisor_runtimes.mlx.folder import ModelFolder, read_folder
from llmvisor_runtimes.mlx.options import read_options, without_meaning
from llmvisor_runtimes.mlx.vocabulary import Vocabulary
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.protocol import Load, Memory, ModelInfo
from llmvisor_runtimes.template import ChatTemplate
from llmvisor_runtimes.toolcalls import family_of

_KV_STEP = 256
"""Tokens that mlx-lm's caches grow by."""
_N_CTX_DEFAULT = 8192
"""Where neither the options nor the folder say."""


class MlxModel:
    """A loaded model."""

    def __init__(self, load: Load, progress: LoadProgressCallback, *, version: str) -> None:
        """Raises `LoadError`."""
        started = time.perf_counter()
        self.options = read_options(load.options.options)
        self.slots = load.options.parallel
        folder = read_folder(Path(load.path))
        for name in without_meaning(load.options):
            print(f"ignored: {name}", file=sys.stderr, flush=True)
        if load.options.n_gpu_layers == 0:
            mx.set_default_device(mx.cpu)
        self.vocabulary = Vocabulary(
            folder.path / "tokenizer.json",
            bos_token=folder.bos_token,
            end_token=folder.end_token,
            end_token_ids=folder.end_token_ids,
        )
        self.template, self._template_source = self._chat_template(folder)
        self.format = OutputFormat(self.vocabulary, family_of(self._template_source))
        self.model = _load_weights(folder, progress)
        weights_bytes = sum(weight.nbytes for weight in _weights(self.model))
        self.n_ctx = load.options.n_ctx or folder.context_length or _N_CTX_DEFAULT
        self.n_batch = load.options.n_batch
        self._warn_of_length(folder)
        active = mx.get_active_memory()
        mx.reset_peak_memory()
        kv_bytes_per_token, self.vocabulary.size = self._warm_up(progress)
        memory = Memory(
            weights_bytes=weights_bytes,
            kv_bytes=kv_bytes_per_token * self.n_ctx,
            compute_bytes=max(0, mx.get_peak_memory() - active),
        )
        self.info = self._describe(folder, memory, time.perf_counter() - started, version)

    def new_cache(self) -> list[Any]:
        """An empty KV cache of one sequence."""
        return make_prompt_cache(self.model)

    def _chat_template(self, folder: ModelFolder) -> tuple[ChatTemplate | None, str]:
        source = self.options.chat_template or folder.chat_template
        if not source:
            return None, ""
        try:
            return ChatTemplate(source, bos_token=folder.bos_token, eos_token=folder.end_token), source
        except RequestError as error:
            hint = "options.chat_template takes another"
            raise LoadError(f"the chat template cannot be used: {error.message} ({hint})", permanent=True) from error

    def _warn_of_length(self, folder: ModelFolder) -> None:
        if 0 < folder.context_length < self.n_ctx:
            print(
                f"n_ctx is {self.n_ctx}, but the model was trained for {folder.context_length} tokens: text beyond "
                "that may turn to nonsense",
                file=sys.stderr,
                flush=True,
            )

    def _warm_up(self, progress: LoadProgressCallback) -> tuple[int, int]:
        """Compute one token; gives the bytes of a token in the KV cache, and the rows of logits."""
        progress("warmup", 0, 1, "steps")
        cache = self.new_cache()
        if not all(hasattr(part, "merge") for part in cache):
            kinds = ", ".join(sorted({type(part).__name__ for part in cache}))
            raise LoadError(f"mlx-lm cannot decode several texts of this model together ({kinds})", permanent=True)
        try:
            logits = self.model(mx.array([[0]]), cache=cache)
            mx.eval(logits)
        except Exception as error:  # whatever a model's code raises over its own configuration
            raise LoadError(f"the model does not compute: {_reason(error)}", permanent=True) from error
        kv_bytes = sum(part.nbytes for part in cache) // _KV_STEP
        mx.clear_cache()
        progress("warmup", 1, 1, "steps")
        return kv_bytes, logits.shape[-1]

    def _describe(self, folder: ModelFolder, memory: Memory, load_seconds: float, version: str) -> ModelInfo:
        chat = ["chat", "tools"] if self.template else []
        return ModelInfo(
            architecture=folder.model_type,
            parameters=get_total_parameters(self.model),
            quantization=_quantization(folder, self.model),
            context_length=folder.context_length,
            n_ctx=self.n_ctx,
            slots=self.slots,
            vocabulary=self.vocabulary.size,
            capabilities=[*chat, "completions", "tokenize", "structured_output"],
            memory=memory,
            load_seconds=load_seconds,
            backend="mlx",
            backend_version=version,
            embedding_dimension=folder.hidden_size,
            chat_template_sha256=(
                hashlib.sha256(self._template_source.encode()).hexdigest() if self._template_source else None
            ),
        )


def _load_weights(folder: ModelFolder, progress: LoadProgressCallback) -> nn.Module:
    """mlx-lm's model of this folder, its weights in memory. Nothing of the folder is run."""
    total = folder.weight_bytes
    progress("weights", 0, total, "bytes")
    try:
        model, _config = load_model(folder.path, lazy=True, trust_remote_code=False)
        done = 0
        for weight in _weights(model):
            mx.eval(weight)
            done += weight.nbytes
            progress("weights", min(done, total), total, "bytes")
    except MemoryError as error:
        raise LoadError(f"the weights do not fit in memory: {error}", permanent=False) from error
    except Exception as error:  # mlx-lm raises whatever a wrong configuration or file leads to
        raise LoadError(f"{folder.path.name} cannot be loaded: {_reason(error)}", permanent=True) from error
    return model


def _weights(model: nn.Module) -> list[mx.array]:
    return [weight for _name, weight in tree_flatten(model.parameters()) if isinstance(weight, mx.array)]


def _quantization(folder: ModelFolder, model: nn.Module) -> str:
    if folder.quantization_bits:
        return f"{folder.quantization_bits}-bit"
    sizes: dict[str, int] = {}
    for weight in _weights(model):
        name = str(weight.dtype).removeprefix("mlx.core.")
        sizes[name] = sizes.get(name, 0) + weight.nbytes
    return max(sizes, key=lambda name: sizes[name], default="")


def _reason(error: Exception) -> str:
    text = str(error).strip() or "no reason given"
    if isinstance(error, KeyError):
        text = f"config.json has no {text}"
    elif isinstance(error, TypeError | AttributeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 500 else text[:500] + "…"
