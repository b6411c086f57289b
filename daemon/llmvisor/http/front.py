"""What every handler needs, and how it finds the model that a request names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from llmvisor.clock import Clock
from llmvisor.control.api import ModelStatus
from llmvisor.control.control import Control
from llmvisor.errors import UnsupportedOperation
from llmvisor.http.ids import Ids
from llmvisor.http.settings import HttpSettings
from llmvisor.services.service import Service

Resolve = Callable[[str | None], str]
"""The name in a request → the model's name. Raises `ModelNotFound`, `TierNotConfigured`."""


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
        status = self.service.model(self.resolve(requested))
        # Capabilities are empty until a model's file has been read.
        if capability and status.capabilities and capability not in status.capabilities:
            able = ", ".join(status.capabilities)
            raise UnsupportedOperation(f"the model '{status.id}' cannot do {capability}, only: {able}", param="model")
        return status

    def unix_seconds(self) -> int:
        return int(self.clock.now().timestamp())


FRONT = web.AppKey("front", Front)
REQUEST_ID = web.RequestKey("request_id", str)
ORIGIN = web.RequestKey("origin", str)
"""The Origin that the answer may be read by, as it is put into `Access-Control-Allow-Origin`."""
ERROR = web.RequestKey("error", str)
"""The code of the error that a request ended with, for the access line: a stream's status says nothing of it."""
MODEL = web.RequestKey("model", str)
"""The model's name, for the access line."""
