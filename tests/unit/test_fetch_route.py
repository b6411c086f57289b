"""Where bytes come from: redirects are remembered, logins stay with the source, and https stays https."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.route import Route
from llmvisor.fetch.web import get_bytes

SOURCE = "https://hub.example/model.gguf"
LOGIN = {"Authorization": "Bearer abc", "Cookie": "id=1", "Accept": "*/*"}


@dataclass
class Answer:
    """What the route and the way looks like, of an answer that has come over redirects."""

    url: URL
    history: list[Answer] = field(default_factory=list["Answer"])
    status: int = 200
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict[str])


def arrived(*addresses: str) -> aiohttp.ClientResponse:
    *before, last = (Answer(URL(address)) for address in addresses)
    last.history = before
    return cast("aiohttp.ClientResponse", last)


class Session:
    """Gives one answer, whatever it is asked."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    @asynccontextmanager
    async def get(self, *_: Any, **__: Any) -> AsyncGenerator[aiohttp.ClientResponse]:
        yield self._answer


async def test_way_that_leaves_https_is_refused() -> None:
    """For files, and for the manifests that hold their checksums; from http nothing is asked."""
    left = arrived(SOURCE, "http://cdn.example/x")
    with pytest.raises(FetchProblem) as of_a_file:
        Route(SOURCE, {}).arrived(left)
    with pytest.raises(FetchProblem) as of_a_manifest:
        await get_bytes(cast("aiohttp.ClientSession", Session(left)), SOURCE, what="it")
    assert (of_a_file.value.kind, of_a_manifest.value.kind) == ("refused", "refused")
    Route("http://127.0.0.1/x", {}).arrived(arrived("http://127.0.0.1/x", "http://127.0.0.1/y"))


@pytest.mark.parametrize("address", ["http://hub.example/", "https://hub.example:8443/", "https://cdn.hub.example/"])
def test_logins_are_for_the_source_alone(address: str) -> None:
    """Another scheme, port or host is another one."""
    route = Route(SOURCE, LOGIN)
    assert route.headers(URL("https://hub.example/other")) == LOGIN
    assert route.headers(URL(address)) == {"Accept": "*/*"}


def test_redirect_is_remembered_until_it_is_over() -> None:
    """The next request goes where the last one arrived, and to the source once that gives nothing."""
    route = Route(SOURCE, LOGIN)
    route.arrived(arrived(SOURCE, "https://cdn.example/x?signed"))
    assert route.address == URL("https://cdn.example/x?signed")
    assert route.lost(route.address)
    assert route.address == URL(SOURCE)
    assert not route.lost(route.address)
