"""What every handler needs, and how it finds the model that a request names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.control.api import InstalledModel, ModelStatus
from llmvisor.control.control import Control
from llmvisor.errors import ModelNotFound, TierNotConfigured, UnsupportedOperation
from llmvisor.http.ids import Ids
from llmvisor.http.media_fetch import MediaFetcher
from llmvisor.http.settings import HttpSettings
from llmvisor.keys.gate import KEY, Gate
from llmvisor.routing.names import DEFAULT, Purpose
from llmvisor.services.service import Service
from llmvisor.store.usage import EndedRequest

_PURPOSES: dict[str, Purpose] = {"embedding": "embedding", "rerank": "reranker"}
"""By capability."""
_TYPES_ABLE = {"chat": {"llm"}, "completions": {"llm"}, "embedding": {"embeddings"}, "rerank": {"reranker"}}
"""By capability: the types of models that have it, for models that are not loaded."""


class Resolve(Protocol):
    """Finds the model that a request means."""

    def __call__(self, requested: str | None, purpose: Purpose = "name") -> str:
        """The name in a request → the model's name. Raises `ModelNotFound`, `TierNotConfigured`."""
        ...


class Opening(Protocol):
    """What is known only a moment after the start: see `models.library.Library`."""

    @property
    def is_open(self) -> bool: ...

    async def wait_open(self) -> bool:
        """Wait until it is known, within a bound; whether it is."""
        ...

    def installed(self, name: str) -> InstalledModel | None:
        """The installed model of this very name."""
        ...


class NothingToOpen:
    """Everything is known from the start."""

    is_open = True

    async def wait_open(self) -> bool:
        return True

    def installed(self, name: str) -> InstalledModel | None:
        """None: there is none."""


@dataclass(frozen=True, slots=True)
class Front:
    """The parts of the daemon that the HTTP front talks to."""

    service: Service
    control: Control
    settings: HttpSettings
    clock: Clock
    ids: Ids
    resolve: Resolve
    media: MediaFetcher
    record: Callable[[EndedRequest], None]
    """Writes down what an inference request took, once it has ended."""
    installed: Opening
    """The installed models, which `resolve` does not know before."""
    gate: Gate
    """The API keys."""

    async def find(self, requested: str | None, purpose: Purpose = "name") -> str:
        """The name of the model that a request means. Where only an installed one can be meant, and those are not
        known yet, it waits for them. Raises `ModelNotFound`, also for one that the request's key is not for, and
        `TierNotConfigured`."""
        try:
            name = await self._found(requested, purpose)
        except ModelNotFound:
            if not _of_key():
                raise
            name = ""  # what it says of other models is not for this key
        if self.visible(name):
            return name
        if not self.installed.is_open:
            await self.installed.wait_open()  # the key may mean an installed model by another name
            if self.visible(name):
                return name
        own = None if _names_one(requested) else self._first_of_key()
        if own is None:
            said = (requested or DEFAULT)[: limits.model_name_chars_max]
            raise ModelNotFound(f"the model '{said}' is not one that this API key is for", param="model")
        return own

    def models(self) -> list[ModelStatus]:
        """Those that the request's key is for."""
        listed = self.service.models()
        if not _of_key():
            return listed
        names = self._names_of_key()
        return [status for status in listed if status.name in names]

    def visible(self, name: str) -> bool:
        """Whether the request's key is for this model. What no key is asked for is for everybody."""
        entries = _of_key()
        return not entries or name in entries or name in self._names_of_key()

    def _first_of_key(self) -> str | None:
        """What a request means that names no model, where the usual answer is not for its key."""
        for entry in _of_key():
            with suppress(ModelNotFound, TierNotConfigured):
                return self.resolve(entry)
        return None

    def _names_of_key(self) -> set[str]:
        """The models that the request's key names, by whatever name."""
        names = set(_of_key())
        for entry in _of_key():
            with suppress(ModelNotFound, TierNotConfigured):  # it was there when the key was made
                names.add(self.resolve(entry))
        return names

    async def _found(self, requested: str | None, purpose: Purpose) -> str:
        if not self.installed.is_open:
            named = _names_one(requested)
            try:
                # What a name looks like counts only once it is known that no model has it.
                return self.resolve(requested, "name" if named else purpose)
            except (ModelNotFound, TierNotConfigured):
                await self.installed.wait_open()
        return self.resolve(requested, purpose)

    async def model(self, requested: str | None, *, capability: str | None = None) -> ModelStatus:
        """The model that a request names; `capability` is what it has to be able to do, where that is known."""
        purpose = _PURPOSES.get(capability, "text") if capability else "name"
        status = self.service.model(await self.find(requested, purpose))
        if capability and (able := _other_abilities(status, capability)):
            raise UnsupportedOperation(f"the model '{status.id}' cannot do {capability}, only: {able}", param="model")
        return status

    def loaded(self, model: ModelStatus) -> ModelStatus:
        """The same model once it has answered: what was known before it was loaded may have been less."""
        return model if model.state in {"loaded", "busy"} else self.service.model(model.name)

    def unix_seconds(self) -> int:
        return int(self.clock.now().timestamp())


def _of_key() -> Sequence[str]:
    """What the request's key is for; empty where that is every model, or no key is asked for."""
    key = KEY.get()
    return () if key is None else key.models


def _names_one(requested: str | None) -> bool:
    return requested not in {None, "", DEFAULT}


def _other_abilities(status: ModelStatus, capability: str) -> str | None:
    """What a model can do instead of this; None where it can, or where nobody knows before it is loaded."""
    if status.capabilities:
        return None if capability in status.capabilities else ", ".join(status.capabilities)
    # Of a type that was read from the model's file, and not merely supposed.
    read = status.type != "llm" or status.architecture is not None
    able = status.type in _TYPES_ABLE.get(capability, {status.type})
    return None if able or not read or status.type == "unknown" else status.type


FRONT = web.AppKey("front", Front)
REQUEST_ID = web.RequestKey("request_id", str)
ORIGIN = web.RequestKey("origin", str)
"""The Origin that the answer may be read by, as it is put into `Access-Control-Allow-Origin`."""
ERROR = web.RequestKey("error", str)
"""The code of the error that a request ended with, for the access line: a stream's status says nothing of it."""
MODEL = web.RequestKey("model", ModelStatus)
"""The model that answers, as it was when it was asked: for the access line, and for what is counted."""
