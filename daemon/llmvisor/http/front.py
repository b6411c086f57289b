"""What every handler needs, and how it finds the model that a request names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from llmvisor.clock import Clock
from llmvisor.control.api import ModelStatus
from llmvisor.control.control import Control
from llmvisor.errors import UnsupportedOperation
from llmvisor.http.ids import Ids
from llmvisor.http.settings import HttpSettings
from llmvisor.routing.names import Purpose
from llmvisor.services.service import Service

_PURPOSES: dict[str, Purpose] = {"embedding": "embedding", "rerank": "reranker"}
"""By capability."""
_TYPES_ABLE = {"chat": {"llm"}, "completions": {"llm"}, "embedding": {"embeddings"}, "rerank": {"reranker"}}
"""By capability: the types of models that have it, for models that are not loaded."""


class Resolve(Protocol):
    """Finds the model that a request means."""

    def __call__(self, requested: str | None, purpose: Purpose = "name") -> str:
        """The name in a request → the model's name. Raises `ModelNotFound`, `TierNotConfigured`."""
        ...


@dataclass(frozen=True, slots=True)
class Front:
    """The parts of the daemon that the HTTP front talks to."""

    service: Service
    control: Control
    settings: HttpSettings
    clock: Clock
    ids: Ids
    resolve: Resolve

    def model(self, requested: str | None, *, capability: str | None = None) -> ModelStatus:
        """The model that a request names; `capability` is what it has to be able to do, where that is known."""
        purpose = _PURPOSES.get(capability, "text") if capability else "name"
        status = self.service.model(self.resolve(requested, purpose))
        if capability and (able := _other_abilities(status, capability)):
            raise UnsupportedOperation(f"the model '{status.id}' cannot do {capability}, only: {able}", param="model")
        return status

    def unix_seconds(self) -> int:
        return int(self.clock.now().timestamp())


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
MODEL = web.RequestKey("model", str)
"""The model's name, for the access line."""
