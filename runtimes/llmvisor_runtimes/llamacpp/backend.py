"""llama.cpp behind the interface that every backend implements."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadProgressCallback, Progress, RequestError
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Generate,
    InfillPrompt,
    Load,
    ModelInfo,
    Prompt,
    Report,
    TextPrompt,
    TokenPrompt,
)
from llmvisor_runtimes.structured import Constraint

if TYPE_CHECKING:
    from llmvisor_runtimes.llamacpp.engine import Engine
    from llmvisor_runtimes.llamacpp.model import LlamaModel


class LlamaCppBackend:
    """One GGUF model, many sequences at once. `backend.Backend` says what each method does."""

    name = "llamacpp"

    def __init__(self) -> None:
        self._model: LlamaModel | None = None
        self._engine: Engine | None = None

    def version(self) -> str:
        return metadata.version("llama-cpp-python")

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        # The engine's library is imported here and nowhere before.
        from llmvisor_runtimes.llamacpp.engine import Engine  # noqa: PLC0415
        from llmvisor_runtimes.llamacpp.kvcache import KvCache  # noqa: PLC0415
        from llmvisor_runtimes.llamacpp.model import LlamaModel  # noqa: PLC0415

        model = LlamaModel(load, progress, version=self.version())
        kv = KvCache(
            model.context,
            cells=model.context.n_ctx,
            sequences=model.sequences,
            can_cut=model.can_cut,
            parked=model.parked(),
        )
        self._model = model
        self._engine = Engine(model.context, model.vocabulary, slots=model.slots, kv=kv)
        # What is loaded stays: the collector need not walk it again while tokens wait.
        gc.collect()
        gc.freeze()
        return model.info

    def tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        vocabulary = self._loaded.vocabulary
        match prompt:
            case TokenPrompt():
                vocabulary.check(prompt.tokens, "prompt")
                return prompt.tokens
            case TextPrompt():
                _check_length(prompt.text)
                return vocabulary.tokenize(prompt.text, add_special=add_special, parse_special=parse_special)
            case InfillPrompt():
                raise RequestError("unsupported_operation", "this model cannot fill in the middle", "suffix")
            case ChatPrompt():
                return vocabulary.tokenize_rendered(self.apply_template(prompt))

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        vocabulary = self._loaded.vocabulary
        return vocabulary.detokenize(tokens), [vocabulary.written_piece(token) for token in tokens]

    def apply_template(self, prompt: ChatPrompt) -> str:
        template = self._loaded.template
        if template is None:
            raise RequestError(
                "unsupported_operation", "the model has no chat template; chat_template in its options sets one"
            )
        return template.render(
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            template_kwargs=prompt.template_kwargs,
        )

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        self._running.generate(request, prompt_tokens, constraint)

    def set_threads(self, count: int) -> None:
        if self._model:
            self._model.context.set_threads(count)

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
        engine, self._engine = self._engine, None
        model, self._model = self._model, None
        if engine:
            engine.close()
        if model:
            model.close()

    @property
    def _loaded(self) -> LlamaModel:
        assert self._model is not None, "load comes first"
        return self._model

    @property
    def _running(self) -> Engine:
        assert self._engine is not None, "load comes first"
        return self._engine


def _check_length(text: str) -> None:
    if len(text) > limits.tokenize_text_bytes_max:
        raise RequestError("invalid_value", f"the text is longer than {limits.tokenize_text_bytes_max} bytes", "prompt")
