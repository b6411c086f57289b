"""MLX behind the interface that every backend implements."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import resource
import sys
from collections.abc import Generator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, LoadProgressCallback, Progress, RequestError
from llmvisor_runtimes.mlx.compiled import keep_compiled
from llmvisor_runtimes.output_format import Grammars
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
    from llmvisor_runtimes.mlx.engine import Engine
    from llmvisor_runtimes.mlx.model import MlxModel
    from llmvisor_runtimes.mlx.prefixes import PrefixCache
    from llmvisor_runtimes.mlx.sequence import Cache

_OTHER_ENGINES = ("torch", "sentencepiece", "tensorflow", "jax")
"""What mlx-lm's dependencies would import where they find it: each with an OpenMP runtime of its own, and none used."""


class MlxBackend:
    """One MLX model, many sequences at once. `backend.Backend` says what each method does.

    It does not implement `SharesCores`: MLX has no setting for the threads it computes with.
    """

    name = "mlx"
    resumes: Literal[True] = True

    def __init__(self, *, alone: bool = True) -> None:
        """`alone`: the process is this backend's, and other engines' libraries are kept out of it."""
        self._alone = alone
        self._model: MlxModel | None = None
        self._engine: Engine | None = None
        self._prefixes: PrefixCache[Cache] | None = None
        self._grammars: Grammars | None = None

    def version(self) -> str:
        try:
            return metadata.version("mlx-lm")
        except metadata.PackageNotFoundError:
            return "not installed"  # loading says more

    def devices(self) -> list[str]:
        import mlx.core as mx  # noqa: PLC0415 - the engine's library

        return ["cpu", "metal"] if mx.metal.is_available() else ["cpu"]

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        keep_compiled(load.options.state_dir)
        self._import_engine(progress)
        from llmvisor_runtimes.mlx.engine import Engine  # noqa: PLC0415 - as above
        from llmvisor_runtimes.mlx.model import MlxModel  # noqa: PLC0415 - as above
        from llmvisor_runtimes.mlx.prefixes import PrefixCache  # noqa: PLC0415 - as above

        model = MlxModel(load, progress, version=self.version())
        options = model.options
        prefixes: PrefixCache[Cache] = PrefixCache(
            sequences_max=options.idle_sequences, bytes_max=options.idle_cache_mb * limits.bytes_per_mb
        )
        self._model, self._prefixes = model, prefixes
        self._engine = Engine(model, model.format, prefixes)
        self._grammars = Grammars(model.vocabulary, model.format, self.apply_template)
        # What is loaded stays: the collector need not walk it again while tokens wait.
        gc.collect()
        gc.freeze()
        return model.info

    def trim(self) -> None:
        import mlx.core as mx  # noqa: PLC0415 - the engine's library

        if self._prefixes is not None:
            self._prefixes.clear()
        mx.clear_cache()

    def _import_engine(self, progress: LoadProgressCallback) -> None:
        """The engine's libraries are imported here and nowhere before. Raises `LoadError`."""
        progress("import", 0, 1, "steps")
        # A model comes from its folder alone, whatever the environment says.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["MLXLM_USE_MODELSCOPE"] = "false"
        if self._alone:
            for name in _OTHER_ENGINES:
                if name not in sys.modules:
                    sys.modules[name] = None  # pyright: ignore[reportArgumentType] - the import system's own sign
        try:
            with _own_limits():
                importlib.import_module("mlx_lm.generate")
        except (ImportError, ValueError) as error:
            missing = [name for name in ("mlx", "mlx_lm") if importlib.util.find_spec(name) is None]
            hint = "pip install 'llmvisor[mlx]'"
            reason = f"{' and '.join(missing)} not installed" if missing else f"mlx-lm cannot be imported: {error}"
            raise LoadError(f"{reason}: {hint}", permanent=True) from error
        progress("import", 1, 1, "steps")

    # ----------------------------------------------------------------------------------------------------------- text

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
                raise RequestError("unsupported_operation", "the mlx backend cannot fill in the middle", "suffix")
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
        if any(message.media for message in prompt.messages):
            raise RequestError("unsupported_operation", "the mlx backend takes no images and no sounds", "messages")
        return template.render(prompt)

    def constraint(self, request: Generate) -> Constraint | None:
        assert self._grammars is not None, "load comes first"
        return self._grammars.constraint(request)

    # ------------------------------------------------------------------------------------------------------ generating

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:
        _check(request)
        self._running.generate(request, prompt_tokens, constraint)

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
        self._model = None
        if engine:
            engine.close()

    @property
    def _loaded(self) -> MlxModel:
        assert self._model is not None, "load comes first"
        return self._model

    @property
    def _running(self) -> Engine:
        assert self._engine is not None, "load comes first"
        return self._engine


@contextlib.contextmanager
def _own_limits() -> Generator[None]:
    """mlx-lm sets the process's limit of open files as it is imported, and fails where it may not; ours stay."""
    before = resource.setrlimit
    resource.setrlimit = _leave_limit
    try:
        yield
    finally:
        resource.setrlimit = before


def _leave_limit(_resource: int, _limits: tuple[int, int]) -> None:
    pass


def _check(request: Generate) -> None:
    if request.adapters:
        raise RequestError("unsupported_operation", "the mlx backend has no LoRA adapters", "adapters")
    if request.speculative not in {None, "off"}:
        raise RequestError("unsupported_operation", "the mlx backend has no speculative decoding", "speculative")


def _check_length(text: str) -> None:
    if len(text) > limits.tokenize_text_bytes_max:
        raise RequestError("invalid_value", f"the text is longer than {limits.tokenize_text_bytes_max} bytes", "prompt")
