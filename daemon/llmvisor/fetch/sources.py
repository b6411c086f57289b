"""Which module knows a source, by what a person wrote before the colon."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

import aiohttp

from llmvisor.fetch.download import Report
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Fetched, FetchRequest, Found, SearchRequest, Unchanged

_MODULES = {"starter": "starter", "file": "local", "hf": "huggingface", "ollama": "ollama"}


class SourceModule(Protocol):
    """What each source's module has. Imported only when it is asked for: huggingface_hub alone takes a second."""

    async def fetch(
        self, request: FetchRequest, *, session: aiohttp.ClientSession, report: Report
    ) -> Fetched | Unchanged:
        """Raises `FetchProblem`."""
        ...


class SearchModule(Protocol):
    async def search(self, request: SearchRequest, *, session: aiohttp.ClientSession) -> Found:
        """Raises `FetchProblem`."""
        ...


async def fetch(request: FetchRequest, *, session: aiohttp.ClientSession, report: Report) -> Fetched | Unchanged:
    """Bring the request's model into its staging folder. Raises `FetchProblem`."""
    kind = request.source.partition(":")[0]
    if kind not in _MODULES:
        raise FetchProblem(
            "invalid",
            f"{request.source[:200]!r} is no source of models",
            hint="write starter, hf:ORG/REPO[:FILE], ollama:NAME[:TAG], or import a file or folder",
        )
    module = cast("SourceModule", import_module(f"llmvisor.fetch.{_MODULES[kind]}"))
    return await module.fetch(request, session=session, report=report)


async def search(request: SearchRequest, *, session: aiohttp.ClientSession) -> Found:
    """What a registry finds. Raises `FetchProblem`."""
    module = cast("SearchModule", import_module("llmvisor.fetch.search"))
    return await module.search(request, session=session)
