"""A host that sends a download to another one: it is asked as seldom as can be, again once the other one is gone, and
neither a login nor a signed address is shown to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from tests.support.downloads import CONTENT, SHA256, Place, open_place
from tests.support.polling import eventually
from tests.support.range_host import Fault, range_host

from llmvisor.fetch import transfer


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Place]:
    async with open_place(tmp_path, monkeypatch) as it:
        yield it


async def test_download_does_not_show_a_login_to_another_host(place: Place) -> None:
    """`Authorization` goes to the source, and not to where it redirects."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        place.host.redirects["/model.gguf"] = other.url("/blob", host="localhost")
        await place.fetch(place.file(sha256=SHA256, headers={"Authorization": "Bearer secret"}))
        assert place.host.asked[0].headers["Authorization"] == "Bearer secret"
        assert all("Authorization" not in asked.headers for asked in other.asked)
    assert place.content == CONTENT


async def test_download_asks_the_source_once_where_it_redirects(place: Place) -> None:
    """Every further piece comes from where the first one came, without the source."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        place.host.redirects["/model.gguf"] = other.url("/blob?signed=1")
        await place.fetch(connections=2)
        assert len(place.host.asked) == 1
        assert len(other.asked) == len(CONTENT) // (128 * 1024) + 1
    assert place.content == CONTENT


async def test_download_asks_the_source_again_where_a_redirect_is_over(place: Place) -> None:
    """1. A signed address that is good for two requests. Result: the source signs another one."""
    async with range_host() as other:
        other.files["/blob"] = CONTENT
        other.faults.extend([None, None, Fault(status=403)])
        place.host.redirects["/model.gguf"] = other.url("/blob")
        await place.fetch(connections=2)
    # The other connection may ask before the first one has the new address.
    assert 2 <= len(place.host.asked) <= 3
    assert place.content == CONTENT


async def test_download_asks_the_source_again_where_a_redirects_host_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The host that it was sent to cuts, and is away. Result: the source is asked, and names another one."""

    def backoff_seconds(failures: int, _: Callable[[], float]) -> float:
        return 1.0 if failures == 1 else 0.01  # the first one is long enough for the host to go

    monkeypatch.setattr(transfer, "backoff_seconds", backoff_seconds)
    async with range_host() as other:
        other.files["/cdn"] = CONTENT
        other.faults.append(Fault(cut_after_bytes=60_000))
        place.host.redirects["/model.gguf"] = other.url("/cdn")
        fetching = asyncio.create_task(place.fetch())
        await eventually(lambda: other.asked and other.open == 0)
    place.host.files["/here"] = CONTENT
    place.host.redirects["/model.gguf"] = place.host.url("/here", "localhost")
    await fetching
    assert place.content == CONTENT
    assert "/here" in [asked.path for asked in place.host.asked]


async def test_errors_do_not_show_a_signed_address(place: Place) -> None:
    """Where the host that it was sent to talks nonsense, or the way to it has no end."""
    place.host.redirects["/model.gguf"] = place.host.url("/cdn?signature=SECRET", "localhost")
    place.host.files["/cdn"] = CONTENT
    place.host.faults.extend([Fault(headers={"Location": "SECRET" + "x" * 20_000})] * 20)
    problem = await place.fails()
    assert (problem.kind, "SECRET" in problem.message) == ("network", False)
    place.host.redirects["/cdn"] = place.host.url("/cdn?signature=SECRET")
    problem = await place.fails()
    assert (problem.kind, "SECRET" in problem.message) == ("invalid", False)


async def test_redirects_in_circles_end(place: Place) -> None:
    """With an error of their own, which does not name the address: it may be signed."""
    place.host.redirects["/model.gguf"] = place.host.url("/model.gguf?signature=secret")
    problem = await place.fails()
    assert problem.kind == "invalid"
    assert "secret" not in problem.message
