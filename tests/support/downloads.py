"""Downloads between a host that can be told to misbehave and a staging folder."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from tests.support.range_host import RangeHost, range_host

from llmvisor.fetch import limits
from llmvisor.fetch.download import RemoteFile, download, open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FetchedFile, FetchProgress, FetchRequest

CONTENT = hashlib.shake_256(b"weights").digest(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Place:
    """A host, a staging folder, and a client between them."""

    host: RangeHost
    staging: Path
    session: aiohttp.ClientSession
    progress: list[FetchProgress] = field(default_factory=list[FetchProgress])

    def file(self, path: str = "model.gguf", **fields: object) -> RemoteFile:
        known: dict[str, object] = {"url": self.host.url(f"/{path}"), "path": path, **fields}
        return RemoteFile(**known)  # pyright: ignore[reportArgumentType] - by name, as a test writes them

    async def fetch(self, *files: RemoteFile, connections: int = 1, rate: int = 0) -> list[FetchedFile]:
        request = FetchRequest("hf:x/y", str(self.staging), connections=connections, bytes_per_second_max=rate)
        wanted = files or (self.file(sha256=SHA256),)
        return await download(self.session, wanted, self.staging, request=request, report=self.progress.append)

    async def fails(self, *files: RemoteFile, connections: int = 1) -> FetchProblem:
        with pytest.raises(FetchProblem) as caught:
            await self.fetch(*files, connections=connections)
        assert caught.value.hint
        return caught.value

    @property
    def content(self) -> bytes:
        return (self.staging / "model.gguf").read_bytes()

    @property
    def starts(self) -> list[int]:
        return [asked.start for asked in self.host.asked]

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.staging.iterdir() if ".partial" not in path.name)


@asynccontextmanager
async def open_place(staging: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    """A place whose host has one file, fetched in small pieces and tried again without a long wait."""
    monkeypatch.setattr(limits, "fetch_backoff_seconds", 0.01)
    monkeypatch.setattr(limits, "fetch_piece_bytes", 128 * 1024)
    monkeypatch.setattr(limits, "fetch_progress_bytes_min", 16 * 1024)
    async with range_host() as host, open_session() as session:
        host.files["/model.gguf"] = CONTENT
        yield Place(host, staging, session)
