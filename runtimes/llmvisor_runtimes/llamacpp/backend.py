"""llama.cpp behind the interface that every backend implements."""

from __future__ import annotations

import importlib
import re
import threading
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadProgressCallback, Progress, RequestError
from llmvisor_runtimes.llamacpp.media_tokens import has_media
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Embed,
    Generate,
    InfillPrompt,
    Load,
    ModelInfo,
    Prompt,
    Report,
    Score,
    TextPrompt,
    TokenPrompt,
)
from llmvisor_runtimes.structured import Constraint

if TYPE_CHECKING:
    from llmvisor_runtimes.llamacpp.draft import DraftModel
    from llmvisor_runtimes.llamacpp.encoder import Encoder
    from llmvisor_runtimes.llamacpp.encoder_model import EncoderModel
    from llmvisor_runtimes.llamacpp.engine import Engine
    from llmvisor_runtimes.llamacpp.kvcache import KvCache
    from llmvisor_runtimes.llamacpp.media_prompt import MediaReader
    from llmvisor_runtimes.llamacpp.model import LlamaModel
    from llmvisor_runtimes.llamacpp.saved_state import StateFile
    from llmvisor_runtimes.llamacpp.weights import Weights
    from llmvisor_runtimes.output_format import Grammars


class LlamaCppBackend:
    """One GGUF model, many sequences at once. `backend.Backend` says what each method does."""

    name = "llamacpp"
    resumes: Literal[True] = True

    def __init__(self) -> None:
        self._model: LlamaModel | EncoderModel | None = None
        self._engine: Engine | Encoder | None = None
        self._kv: KvCache | None = None
        self._draft: DraftModel | None = None
        self._state_file: StateFile | None = None
        self._encoder: Encoder | None = None
        """The engine of a model that encodes texts."""
        self._grammars: Grammars | None = None
        self._media: MediaReader | None = None
        self._stop: list[str] = []
        """Of a model with an mmproj beside it."""

    def version(self) -> str:
        # Where llama-cpp-python's own build finds it: to ask for its metadata takes 20 ms.
        spec = find_spec("llama_cpp")
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        found = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)
        return found[1] if found else "not installed"  # loading says more

    def devices(self) -> list[str]:
        from llmvisor_runtimes.llamacpp.native import llama_cpp  # noqa: PLC0415 - the engine's library

        return ["cpu", "gpu"] if llama_cpp.llama_supports_gpu_offload() else ["cpu"]

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        # The engine's library is imported here and nowhere before.
        from llmvisor_runtimes.llamacpp.weights import Weights  # noqa: PLC0415

        # llama.cpp reads the file without Python's lock.
        beside = threading.Thread(target=_import_the_rest, name="imports")
        beside.start()
        try:
            weights = Weights(load, progress)
        finally:
            beside.join()
        from llmvisor_runtimes.llamacpp.engine import Engine  # noqa: PLC0415
        from llmvisor_runtimes.llamacpp.kvcache import KvCache  # noqa: PLC0415
        from llmvisor_runtimes.llamacpp.model import LlamaModel  # noqa: PLC0415
        from llmvisor_runtimes.output_format import Grammars  # noqa: PLC0415

        if weights.pooling is not None:
            return self._load_encoder(weights, load, progress)
        model = LlamaModel(weights, load, progress, version=self.version())
        kv = KvCache(
            model.context,
            cells=model.context.n_ctx,
            sequences=model.sequences,
            can_cut=model.can_cut,
            parked=model.parked(),
        )
        self._model = model
        self._engine = Engine(
            model.context,
            model.vocabulary,
            slots=model.slots,
            kv=kv,
            adapters=model.adapters,
            format=model.format,
            speculative=model.options.speculative,
            draft=model.draft,
            media=model.media,
        )
        self._media = model.media_reader()
        self._stop = model.options.stop
        self._grammars = Grammars(model.vocabulary, model.format, self.apply_template)
        self._kv, self._draft = kv, model.draft
        self._state_file = model.state_file(load)
        if self._state_file:
            kv.restore(self._state_file.take())
        return model.info

    def _load_encoder(self, weights: Weights, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        from llmvisor_runtimes.llamacpp.encoder import Encoder  # noqa: PLC0415
        from llmvisor_runtimes.llamacpp.encoder_model import EncoderModel  # noqa: PLC0415

        model = EncoderModel(weights, load, progress, version=self.version())
        self._model = model
        self._engine = self._encoder = Encoder(model)
        return model.info

    def tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        from llmvisor_runtimes.llamacpp.infill import Infill  # noqa: PLC0415

        vocabulary = self._loaded.vocabulary
        match prompt:
            case TokenPrompt():
                vocabulary.check(prompt.tokens, "prompt")
                return prompt.tokens
            case TextPrompt():
                _check_length(prompt.text)
                return vocabulary.tokenize(prompt.text, add_special=add_special, parse_special=parse_special)
            case InfillPrompt():
                _check_length(prompt.prefix, prompt.suffix)
                return Infill(vocabulary).tokens(prompt)
            case ChatPrompt():
                rendered = self.apply_template(prompt)
                if any(message.media for message in prompt.messages):
                    return self._with_media(prompt, rendered)
                return vocabulary.tokenize_rendered(rendered)

    def _with_media(self, prompt: ChatPrompt, rendered: str) -> list[int]:
        if self._media is None:
            message = "this model reads text, no images and no sounds; mmproj in its options names a file that lets it"
            raise RequestError("unsupported_operation", f"messages: {message}", "messages")
        return self._media.prompt(prompt, rendered)

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        vocabulary = self._loaded.vocabulary
        if self._media and has_media(tokens):
            # Of a prompt that was tokenized here: what stands for images is no text.
            pieces = [vocabulary.written_piece(token) if token >= 0 else b"" for token in tokens]
            return b"".join(pieces).decode("utf-8", "replace"), pieces
        return vocabulary.detokenize(tokens), [vocabulary.written_piece(token) for token in tokens]

    def apply_template(self, prompt: ChatPrompt) -> str:
        if self._encoder:
            raise self._encoder.refusal()
        template = self._loaded.template
        if template is None:
            raise RequestError(
                "unsupported_operation", "the model has no chat template; chat_template in its options sets one"
            )
        return template.render(prompt)

    def constraint(self, request: Generate) -> Constraint | None:
        if self._encoder:
            raise self._encoder.refusal()
        assert self._grammars is not None, "load comes first"
        return self._grammars.constraint(request)

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        if self._stop and isinstance(request.prompt, ChatPrompt) and request.grammar is None:
            request = msgspec.structs.replace(request, stop=[*request.stop, *self._stop])
        self._running.generate(request, prompt_tokens, constraint)

    def prepare(self, request: Embed | Score) -> list[list[int]]:
        if self._encoder:
            return self._encoder.prepare(request)
        what = "embeddings" if isinstance(request, Embed) else "scores"
        raise RequestError("unsupported_operation", f"this model generates text, it gives no {what}", "model")

    def join(self, pieces: Sequence[object]) -> list[list[int]]:
        return [tokens for piece in pieces for tokens in cast("list[list[int]]", piece)]

    def encode(self, request: Embed | Score, prepared: object) -> None:
        assert self._encoder is not None, "prepare refuses"
        self._encoder.encode(request, cast("list[list[int]]", prepared))

    def set_threads(self, count: int) -> None:
        if self._model:
            self._model.context.set_threads(count)
        if self._draft:
            self._draft.context.set_threads(count)

    def trim(self) -> None:
        if self._kv:
            self._kv.trim()

    def step(self) -> list[Report]:
        return self._running.step()

    def delay_seconds(self) -> float | None:
        return self._engine.delay_seconds() if self._engine else None

    def cancel(self, id: int) -> None:
        if self._engine:
            self._engine.cancel(id)

    def pause(self, id: int) -> None:
        if self._engine:
            self._engine.pause(id)

    def resume(self, id: int) -> None:
        if self._engine:
            self._engine.resume(id)

    def progress(self) -> Progress:
        return self._engine.progress() if self._engine else Progress(step=0, phase="load")

    def close(self) -> None:
        if self._state_file and self._kv:
            self._state_file.write(self._kv.saved())
        self._state_file = self._kv = self._draft = None
        engine, self._engine, self._encoder = self._engine, None, None
        model, self._model = self._model, None
        self._media = None
        if engine:
            engine.close()
        if model:
            model.close()

    @property
    def _loaded(self) -> LlamaModel | EncoderModel:
        assert self._model is not None, "load comes first"
        return self._model

    @property
    def _running(self) -> Engine | Encoder:
        assert self._engine is not None, "load comes first"
        return self._engine


def _check_length(*texts: str) -> None:
    if sum(map(len, texts)) > limits.tokenize_text_bytes_max:
        raise RequestError("invalid_value", f"the text is longer than {limits.tokenize_text_bytes_max} bytes", "prompt")


def _import_the_rest() -> None:
    try:
        for name in ("engine", "model"):
            importlib.import_module(f"llmvisor_runtimes.llamacpp.{name}")
    except Exception:  # noqa: BLE001 - comes up again where it is imported by name, but perhaps as another one
        traceback.print_exc()
