"""What stands before a service and hands on what it does not care about."""

from __future__ import annotations

from llmvisor.control.api import ModelStatus
from llmvisor.services.service import ModelIdentity, Service
from llmvisor_runtimes.protocol import ChatPrompt, Prompt, Tokens


class Before:
    """The questions that pass to the service behind as they are: see `services.service.Service`."""

    def __init__(self, service: Service) -> None:
        self.name = service.name
        self._service = service

    def stand_before(self, service: Service) -> None:
        """Hand on to another service from now on; what has begun ends where it began."""
        self._service = service

    def models(self) -> list[ModelStatus]:
        return self._service.models()

    def model(self, name: str) -> ModelStatus:
        return self._service.model(name)

    def identity(self, model: str) -> ModelIdentity:
        return self._service.identity(model)

    async def tokenize(self, model: str, prompt: Prompt, *, add_special: bool, parse_special: bool) -> Tokens:
        return await self._service.tokenize(model, prompt, add_special=add_special, parse_special=parse_special)

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return await self._service.detokenize(model, tokens)

    async def apply_template(self, model: str, prompt: ChatPrompt) -> str:
        return await self._service.apply_template(model, prompt)
