"""Fetches of one model after another from a hub's double, through the real huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
from tests.support.hub_double import HubDouble

from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.huggingface import fetch
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


@contextmanager
def hub_without_login(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Generator[HubDouble]:
    """A hub to which nobody on this machine has a token yet."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "no-login"))
    with HubDouble() as double:
        yield double
    huggingface_hub.close_session()


class Trial:
    """One fetch after another into the same staging folder."""

    def __init__(self, hub: HubDouble, staging: Path) -> None:
        staging.mkdir()
        self._hub = hub
        self.staging = staging
        self.progress: list[FetchProgress] = []

    async def run(self, source: str, **settings: object) -> Fetched | Unchanged:
        fields = {"huggingface_endpoint": self._hub.url, "connections": 2, **settings}
        request = FetchRequest(source, str(self.staging), **fields)  # pyright: ignore[reportArgumentType]
        async with open_session() as session:
            return await fetch(request, session=session, report=self.progress.append)

    async def fetched(self, source: str, **settings: object) -> Fetched:
        got = await self.run(source, **settings)
        assert isinstance(got, Fetched)
        return got

    async def problem(self, source: str, **settings: object) -> FetchProblem:
        with pytest.raises(FetchProblem) as caught:
            await self.run(source, **settings)
        assert caught.value.hint
        return caught.value

    def files(self) -> dict[str, bytes]:
        """What lies in the staging folder under its own name."""
        found = [path for path in self.staging.rglob("*") if path.is_file() and ".partial" not in path.name]
        return {path.relative_to(self.staging).as_posix(): path.read_bytes() for path in found}
