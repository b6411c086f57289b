"""The local service: the models that this daemon's own workers serve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import msgspec

from llmvisor import __version__, limits
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InternalError, ModelNotFound
from llmvisor.models.catalogue import Catalogue, file_signature
from llmvisor.services.service import (
    Embedded,
    EmbeddingRequest,
    Generation,
    ModelIdentity,
    Scored,
    ScoringRequest,
    Stream,
)
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.state import HAS_WORKER
from llmvisor.supervision.stream import Answer
from llmvisor.supervision.supervisor import Supervisor
from llmvisor_runtimes.protocol import ApplyTemplate, ChatPrompt, Detokenize, Prompt, Text, Tokenize, Tokens

_ENGINES = {"llamacpp": "llama-cpp-python", "mlx": "mlx-lm", "flag": "FlagEmbedding"}
"""The distribution that brings each backend's engine."""


class LocalService:
    """Each model's runtime, behind the interface of every service."""

    name = "local"

    def __init__(self, supervisor: Supervisor, *, cache_always: bool = False) -> None:
        self._cache_always = cache_always
        self._identities: dict[str, ModelIdentity] = {}
        self._runtimes = supervisor.runtimes
        self._catalogue = supervisor.catalogue

    def runtime(self, model: str) -> Runtime:
        """Raises `ModelNotFound`."""
        runtime = self._runtimes.get(model)
        if runtime is None:
            raise ModelNotFound(f"the model '{model}' does not exist", param="model")
        return runtime

    def models(self) -> list[ModelStatus]:
        return [self.model(name) for name in self._runtimes]

    def model(self, name: str) -> ModelStatus:
        runtime = self.runtime(name)
        return model_status(runtime.config, runtime, self._catalogue)

    def identity(self, model: str) -> ModelIdentity:
        runtime = self.runtime(model)
        known = self._identities.get(model)
        # What a worker has loaded stays what it is, whatever becomes of the files.
        if known is None or runtime.state not in HAS_WORKER:
            config = runtime.config
            known = ModelIdentity(
                fingerprint(config), config.sampling_defaults(), config.max_tokens, self._cache_always
            )
            self._identities[model] = known
        return known

    def generate(self, model: str, generation: Generation) -> Stream:
        return self.runtime(model).generate(generation)

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        return await self.runtime(model).embed(request)

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        return await self.runtime(model).score(request)

    async def tokenize(self, model: str, prompt: Prompt, *, add_special: bool, parse_special: bool) -> Tokens:
        answer = await self.runtime(model).call(
            lambda call_id: Tokenize(call_id, prompt, add_special=add_special, parse_special=parse_special)
        )
        if not isinstance(answer, Tokens):
            raise InternalError("the worker answered tokenize with something else")
        return answer

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return _text(await self.runtime(model).call(lambda call_id: Detokenize(call_id, tokens)))

    async def apply_template(self, model: str, prompt: ChatPrompt) -> str:
        return _text(await self.runtime(model).call(lambda call_id: ApplyTemplate(call_id, prompt)))


def fingerprint(config: ModelConfig) -> str:
    """Changes with all that a model's answers depend on; empty where its file is not there. Looks at the files."""
    signature = file_signature(config)
    if config.path is not None and signature is None:
        return ""
    beside = [file_signature(msgspec.structs.replace(config, path=path)) for path in _paths(config.options)]
    parts = (signature, beside, config.backend, config.path, config.model_options(), installed_version(config.backend))
    return hashlib.sha256(msgspec.msgpack.encode((__version__, *parts))).hexdigest()


def _paths(value: object) -> Iterator[str]:
    """What stands in options like a path: adapters, a draft model."""
    if isinstance(value, str) and "/" in value and len(value) < limits.option_path_chars_max:
        yield value
    elif isinstance(value, Mapping):
        for each in cast("Mapping[str, object]", value).values():
            yield from _paths(each)


def installed_version(backend: str | None) -> str:
    """The version of a backend's engine as installed beside the daemon; empty where it is somewhere else."""
    try:
        return version(_ENGINES.get(backend or "", ""))
    except (PackageNotFoundError, ValueError):
        return ""


def _text(answer: Answer | None) -> str:
    if not isinstance(answer, Text):
        raise InternalError("the worker answered a question for text with something else")
    return answer.text


def model_id(name: str, config: ModelConfig) -> str:
    """`tier/name` for a model with a tier, else its name."""
    return f"{config.tier}/{name}" if config.tier else name


def model_status(config: ModelConfig, runtime: Runtime, catalogue: Catalogue) -> ModelStatus:
    """All that is known of a model: configuration, then its file, then what the worker said."""
    name, info = runtime.name, runtime.info
    read = catalogue.header(name) or catalogue.folder(name)
    header = catalogue.header(name)
    signature = catalogue.signature(runtime.name)
    runtime_status = runtime.status()
    return ModelStatus(
        id=model_id(name, config),
        name=name,
        tier=config.tier,
        aliases=config.aliases,
        service=LocalService.name,
        backend=runtime_status.backend,
        state=runtime_status.state,
        type=catalogue.type(name),
        path=config.path,
        size=signature.size if signature else None,
        architecture=info.architecture if info else read.architecture if read else None,
        quantization=info.quantization if info else read.quantization if read else None,
        parameters=info.parameters if info else header.parameters if header else None,
        context_length=info.context_length if info else read.context_length if read else None,
        n_ctx=info.n_ctx if info else config.n_ctx,
        capabilities=info.capabilities if info else [],
        chat_template_sha256=info.chat_template_sha256 if info else header.chat_template_sha256 if header else None,
        memory_estimated=catalogue.memory_estimated(name),
        loaded_at=runtime.loaded_at,
        created=signature.modified_ns // 10**9 if signature else 0,
        error=runtime_status.error,
        embedding_dimension=config.embedding_dimension,
        pinned=config.pinned,
        preload=config.preload,
    )
