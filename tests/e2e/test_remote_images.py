"""Images by URL through a real daemon, from their host to the worker that reads them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import aiohttp
import pytest
from tests.support import seeing_backend
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.image_host import PNG, ImageHost, image_host
from tests.support.leaks import no_leaks
from tests.support.polling import eventually
from tests.support.seeing_backend import digest


@pytest.fixture
async def host() -> AsyncGenerator[ImageHost]:
    async with image_host() as one:
        yield one


@pytest.fixture
def daemon(host: ImageHost, tmp_path: Path) -> Generator[Daemon]:
    """A model that sees and one that does not, the response cache, and one host that is listed."""
    env = seeing_backend.install(tmp_path / "packages")
    config: Json = {
        "server": {"media_hosts": [host.entry]},
        "cache": {"enabled": True},
        "models": {"eyes": {"backend": "seeing", "path": __file__, "env": env}, "blind": mock_model()},
        "backends": {"seeing": {"python": sys.executable}},
    }
    with no_leaks(), Daemon(config) as one:
        yield one


async def ask(daemon: Daemon, *urls: str, model: str = "eyes") -> tuple[int, str, str]:
    """The status, what the cache says, and the reply or the error's message."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "temperature": 0}
    async with aiohttp.ClientSession() as client, client.post(f"{daemon.url}/v1/chat/completions", json=body) as answer:
        got = await answer.json()
        said = got["choices"][0]["message"]["content"] if answer.status == 200 else got["error"]["message"]
        return answer.status, answer.headers.get("X-LLMVISOR-Cache", ""), said


async def test_remote_image_reaches_the_worker_as_its_bytes(daemon: Daemon, host: ImageHost) -> None:
    """What the worker reads is what the host has; the cache answers for the bytes, not for their address."""
    assert await ask(daemon, host.url()) == (200, "miss", digest(PNG))
    assert await ask(daemon, host.url("/the-same.png")) == (200, "hit", digest(PNG))
    host.image = PNG + b"changed"
    assert await ask(daemon, host.url()) == (200, "miss", digest(host.image))
    assert host.asked == ["/a.png", "/the-same.png", "/a.png"]


async def test_remote_image_of_another_host_is_refused(daemon: Daemon, host: ImageHost) -> None:
    """Nor is one for a model that reads text; and the daemon goes on."""
    async with image_host() as canary:
        host.redirect_to = canary.url()
        for url in (canary.url(), host.url("/redirect")):
            status, _, message = await ask(daemon, url)
            assert status == 400
            assert "server.media_hosts" in message
        assert canary.asked == []
    status, _, message = await ask(daemon, host.url(), model="blind")
    assert (status, "reads text" in message) == (400, True)
    assert (await ask(daemon, host.url()))[0] == 200


async def test_daemon_ends_while_an_image_is_fetched(daemon: Daemon, host: ImageHost) -> None:
    """A host that keeps it waiting does not keep it from ending."""
    asking = asyncio.create_task(ask(daemon, host.url("/gated")))
    await eventually(lambda: host.open == 1, 10, "the image is asked for")
    daemon.signal(signal.SIGTERM)
    await eventually(lambda: not daemon.running, 30, "the daemon ends")
    assert daemon.wait() == 0
    with pytest.raises(aiohttp.ClientError):
        await asking
    await eventually(lambda: host.open == 0, 5, "the host is left")
