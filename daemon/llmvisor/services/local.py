"""The local service: the models that this daemon's own workers serve."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import msgspec

from llmvisor import __version__
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import InstalledModel, ModelStatus
from llmvisor.errors import InternalError
from llmvisor.models.catalogue import file_signature, paths_in
from llmvisor.services.model_status import SERVICE, model_status, resting_status
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
from llmvisor.supervision.scheduling.state import HAS_WORKER
from llmvisor.supervision.stream import Answer
from llmvisor.supervision.supervisor import Supervisor
from llmvisor_runtimes.protocol import ApplyTemplate, ChatPrompt, Detokenize, Prompt, Text, Tokenize, Tokens

_ENGINES = {"llamacpp": "llama-cpp-python", "mlx": "mlx-lm", "flag": "FlagEmbedding"}
"""The distribution that brings each backend's engine."""


class InstalledModels(Protocol):
    """The part of `models.library.Library` that is asked for here."""

    @property
    def version(self) -> int:
        """Another one after every change."""
        ...

    def installed(self, name: str) -> InstalledModel | None: ...

    def is_gone(self, name: str) -> bool: ...


class LocalService:
    """Each model's runtime, behind the interface of every service."""

    name = SERVICE

    def __init__(
        self, supervisor: Supervisor, library: InstalledModels | None = None, *, cache_always: bool = False
    ) -> None:
        self._supervisor = supervisor
        self._library = library
        self._cache_always = cache_always
        self._identities: dict[str, tuple[ModelConfig, ModelIdentity]] = {}
        self._listed: list[ModelStatus] = []
        """All models as they are without runtimes, in order: there may be thousands, and they seldom change."""
        self._listed_version: tuple[int, int] | None = None
        self._places: dict[str, int] = {}

    def configure(self, *, cache_always: bool) -> None:
        """Whether generations are kept that are neither greedy nor seeded."""
        self._cache_always = cache_always
        self._identities.clear()

    def runtime(self, model: str) -> Runtime:
        """Raises `ModelNotFound`."""
        return self._supervisor.runtime(model)

    def models(self) -> list[ModelStatus]:
        supervisor = self._supervisor
        version = (supervisor.version, self._library.version if self._library is not None else 0)
        if version != self._listed_version:
            self._listed = [self._at_rest(name) or self.model(name) for name in supervisor.configs]
            self._places = {name: place for place, name in enumerate(supervisor.configs)}
            self._listed_version = version
        listed = self._listed.copy()
        for name in supervisor.runtimes:
            if (place := self._places.get(name)) is not None:
                listed[place] = self.model(name)
        return listed

    def model(self, name: str) -> ModelStatus:
        resting = self._at_rest(name)
        if resting is not None:
            return resting
        supervisor = self._supervisor
        return model_status(
            self.runtime(name), supervisor.catalogue, self._installed(name), supervisor.residency.estimates
        )

    def _installed(self, name: str) -> InstalledModel | None:
        """The installed model that a name means: the configuration's own come before, unless it has the very file."""
        found = None if self._library is None else self._library.installed(name)
        if found is None or (config := self._supervisor.configs.get(name)) is None:
            return None
        return found if config.path == found.path else None

    def _at_rest(self, name: str) -> ModelStatus | None:
        """An installed model that nobody has wanted yet; None for others."""
        installed = None if name in self._supervisor.runtimes else self._installed(name)
        if installed is None or self._library is None:
            return None
        config, catalogue = self._supervisor.configs[name], self._supervisor.catalogue
        estimates = self._supervisor.residency.estimates
        return resting_status(config, installed, catalogue, estimates, gone=self._library.is_gone(name))

    def identity(self, model: str) -> ModelIdentity:
        runtime = self.runtime(model)
        # Of the next worker, where a model is being replaced: whatever is asked from now on comes from that one.
        config = self._supervisor.configs[model]
        known = self._identities.get(model)
        # What a worker has loaded stays what it is, whatever becomes of the files.
        if known is None or known[0] is not config or runtime.state not in HAS_WORKER:
            installed = self._installed(model)
            revision = installed.revision if installed is not None and not installed.linked else None
            known = self._identities[model] = (config, self._identity(config, revision))
        return known[1]

    def _identity(self, config: ModelConfig, revision: str | None) -> ModelIdentity:
        return ModelIdentity(
            fingerprint(config, revision), config.sampling_defaults(), config.max_tokens, self._cache_always
        )

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


def fingerprint(config: ModelConfig, revision: str | None = None) -> str:
    """Changes with all that a model's answers depend on; empty where its file is not there.

    Looks at the files, unless they are those of an installed model's revision, which never change.
    """
    signature = revision or file_signature(config)
    if config.path is not None and signature is None:
        return ""
    beside = (
        []
        if revision
        else [file_signature(msgspec.structs.replace(config, path=path)) for path in paths_in(config.options)]
    )
    parts = (signature, beside, config.backend, config.path, config.model_options(), installed_version(config.backend))
    return hashlib.sha256(msgspec.msgpack.encode((__version__, *parts))).hexdigest()


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
