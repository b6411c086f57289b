"""FlagEmbedding behind the interface that every backend implements."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, cast

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadProgressCallback, Progress, RequestError
from llmvisor_runtimes.cores import available_cores
from llmvisor_runtimes.encoding import Input
from llmvisor_runtimes.flag.engine import FlagEngine, as_inputs
from llmvisor_runtimes.flag.folder import ModelFolder, read_folder
from llmvisor_runtimes.flag.library import import_library
from llmvisor_runtimes.flag.options import FlagOptions, read_options
from llmvisor_runtimes.flag.tokens import Tokenized
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Embed,
    Generate,
    Load,
    Memory,
    ModelInfo,
    Prompt,
    Report,
    Score,
    TextPrompt,
    TokenPrompt,
)
from llmvisor_runtimes.structured import Constraint

if TYPE_CHECKING:
    from llmvisor_runtimes.flag.loading import LoadedModel

_WARM_UP_TOKENS = 64


class FlagBackend:
    """One embedding model or reranker, many requests at once. `backend.Backend` says what each method does."""

    name = "flag"

    def __init__(self) -> None:
        self._model: LoadedModel | None = None
        self._folder: ModelFolder | None = None
        self._engine: FlagEngine | None = None

    def version(self) -> str:
        return metadata.version("FlagEmbedding")

    def devices(self) -> list[str]:
        """Where this machine can compute; imports torch."""
        import_library()
        from llmvisor_runtimes.flag import loading  # noqa: PLC0415 - it imports torch

        return loading.devices()

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        began = time.monotonic()
        options = read_options(load.options.options)
        folder = read_folder(load.path, options)
        import_library(progress)
        from llmvisor_runtimes.flag import loading  # noqa: PLC0415 - it imports torch

        threads = load.options.n_threads or available_cores()
        model = loading.load_model(folder, options, n_ctx=load.options.n_ctx, threads=threads, progress=progress)
        progress("warm-up", 0, 1, "steps")
        self._folder, self._model = folder, model
        self._engine = _engine(model, options)
        self._engine.warm_up(_warm_up_inputs(folder, model))
        progress("warm-up", 1, 1, "steps")
        return self._info(load_seconds=time.monotonic() - began)

    def prepare(self, request: Embed | Score) -> list[Input[Tokenized]]:
        return as_inputs(self._tokenized(request))

    def join(self, pieces: Sequence[object]) -> list[Input[Tokenized]]:
        return [input for piece in pieces for input in cast("list[Input[Tokenized]]", piece)]

    def _tokenized(self, request: Embed | Score) -> list[Tokenized]:
        folder, model = self._loaded
        if isinstance(request, Score):
            if model.pairs is None:
                raise RequestError("unsupported_operation", "this model gives embeddings, no scores of pairs", "model")
            return model.pairs.prepare(request.pairs, truncate=request.truncate)
        if model.pairs is not None:
            raise RequestError("unsupported_operation", "this model scores pairs, it gives no embeddings", "model")
        if not request.kinds:
            raise RequestError("invalid_value", "no kind of embedding is asked for", "embedding_type")
        for kind in request.kinds:
            if kind != "dense" and folder.kind != "m3":
                raise RequestError("unsupported_operation", f"this model gives no {kind} embeddings", "embedding_type")
        return model.texts.prepare(request.inputs, request.kinds, truncate=request.truncate)

    def encode(self, request: Embed | Score, prepared: object) -> None:
        self._running.encode(request, cast("list[Input[Tokenized]]", prepared))

    def tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        del parse_special  # these tokenizers always do
        if isinstance(prompt, TokenPrompt):
            return prompt.tokens
        if isinstance(prompt, TextPrompt):
            return self._loaded[1].texts.tokenize(prompt.text, add_special=add_special)
        raise _no_text()

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        return self._loaded[1].texts.detokenize(tokens)

    def apply_template(self, prompt: ChatPrompt) -> str:  # noqa: ARG002 - refused whatever it is
        raise _no_text()

    def generate(
        self,
        request: Generate,  # noqa: ARG002 - refused whatever it is
        prompt_tokens: list[int],  # noqa: ARG002 - as above
        constraint: Constraint | None = None,  # noqa: ARG002 - as above
    ) -> None:
        raise _no_text()

    def step(self) -> list[Report]:
        return self._running.step()

    def delay_seconds(self) -> float | None:
        return self._engine.delay_seconds() if self._engine else None

    def cancel(self, id: int) -> None:
        if self._engine:
            self._engine.cancel(id)

    def pause(self, id: int) -> None:
        """Vectors come in few frames: there is nothing to hold back."""

    def resume(self, id: int) -> None: ...

    def set_threads(self, count: int) -> None:
        if self._engine:
            self._engine.set_threads(count)

    def progress(self) -> Progress:
        return self._engine.progress() if self._engine else Progress(step=0, phase="load")

    def close(self) -> None:
        self._engine = self._model = None

    def _info(self, *, load_seconds: float) -> ModelInfo:
        folder, model = self._loaded
        capabilities = {"m3": ["embedding", "sparse", "colbert"], "dense": ["embedding"]}.get(folder.kind, ["rerank"])
        return ModelInfo(
            architecture=folder.architecture,
            parameters=model.parameters,
            quantization=model.precision,
            context_length=folder.length_max or model.length_max,
            n_ctx=model.length_max,
            slots=limits.encoder_slots,
            vocabulary=folder.vocabulary,
            capabilities=["tokenize", *capabilities],
            memory=Memory(weights_bytes=model.weights_bytes),
            load_seconds=load_seconds,
            backend=self.name,
            backend_version=self.version(),
            embedding_dimension=0 if model.pairs is not None else folder.hidden_size,
        )

    @property
    def _loaded(self) -> tuple[ModelFolder, LoadedModel]:
        assert self._folder is not None, "load comes first"
        assert self._model is not None, "load comes first"
        return self._folder, self._model

    @property
    def _running(self) -> FlagEngine:
        assert self._engine is not None, "load comes first"
        return self._engine


def _engine(model: LoadedModel, options: FlagOptions) -> FlagEngine:
    on_cpu = model.device == "cpu"
    default = limits.encoding_batch_tokens_max if on_cpu else limits.encoding_batch_tokens_gpu_max
    return FlagEngine(
        model.encoder,
        clock=time.monotonic,
        tokens_max=options.batch_tokens or default,
        inputs_max=options.batch_inputs,
        padding_free_tokens=limits.encoding_padding_free_tokens,
    )


def _warm_up_inputs(folder: ModelFolder, model: LoadedModel) -> list[Tokenized]:
    """Inputs whose results nobody wants: the first pass is slow, and the pace is not known yet."""
    length = min(_WARM_UP_TOKENS, model.length_max)
    kinds = ("dense",) if folder.kind in {"m3", "dense"} else ()
    rows = [[(row * length + place) % max(1, folder.vocabulary) for place in range(length)] for row in range(4)]
    types = [0] * length if model.texts.with_types else None
    return [Tokenized(row, types, kinds) for row in rows]


def _no_text() -> RequestError:
    return RequestError("unsupported_operation", "this model generates no text", "model")
