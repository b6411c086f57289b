"""A10: no URL of a request makes the daemon connect to an address inside, in any notation, by any detour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.support.fake_service import LIGHT, FakeService
from tests.support.http_front import CHAT, Served, served
from tests.support.image_host import image_host

from llmvisor.http.settings import HttpSettings

SEEING = msgspec.structs.replace(LIGHT, capabilities=[*LIGHT.capabilities, "vision", "audio"])
INSIDE = [
    "http://127.0.0.1:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://[::1]:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://[::ffff:7f00:1]:{port}/a.png",
    "http://[0:0:0:0:0:0:0:0]:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f000001:{port}/a.png",
    "http://0177.0.0.1:{port}/a.png",
    "http://127.1:{port}/a.png",
    "http://0:{port}/a.png",
    "http://0.0.0.0:{port}/a.png",
    "http://127.0.0.1.:{port}/a.png",
    "http://LOCALHOST:{port}/a.png",
    "http:\\\\evil@127.0.0.1:{port}/a.png",
    "http://images.example@127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}\\@images.example/a.png",
    "http://127.0.0.1:{port}#@images.example/a.png",
    "http://①②⑦.0.0.1:{port}/a.png",
    "http://127。0。0。1:{port}/a.png",
    "http://images.example:80@127.0.0.1:{port}/",
    "//127.0.0.1:{port}/a.png",
    "http:127.0.0.1:{port}/a.png",
    "http:/127.0.0.1:{port}/a.png",
    "HTTP://127.0.0.1:{port}/a.png",
    " http://127.0.0.1:{port}/a.png",
    "http://127.0.0.1:{port}/a.png\r\nX: y",
    "gopher://127.0.0.1:{port}/_x",
    "dict://127.0.0.1:{port}/x",
    "ftp://127.0.0.1:{port}/a.png",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file://localhost/etc/passwd",
    "/etc/passwd",
    "data:text/html;base64,PHA+",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1%25lo]:{port}/",
    "http+unix://%2Frun%2Fcontrol.sock/shutdown",
]


@asynccontextmanager
async def canary() -> AsyncGenerator[tuple[int, list[str]]]:
    """Listens on all addresses of this machine and notes who connects."""
    connections: list[str] = []

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(str(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(connected, "0.0.0.0", 0)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        server.close()
        await server.wait_closed()


async def refused(front: Served, url: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
    ):
        answer = await front.post(CHAT, {"model": "smol", "messages": [{"role": "user", "content": [part]}]})
        assert answer.status == 400, (url, part, answer.body[:200])
    assert front.service.generations == []


@pytest.mark.parametrize("listed", [(), ("images.example", "*.images.example")], ids=["none listed", "others listed"])
async def test_address_inside_is_refused_in_every_notation(tmp_path: Path, listed: tuple[str, ...]) -> None:
    """400 for each, and nobody connected to the canary."""
    settings = HttpSettings(handler_cleanup_seconds=0.2, media_hosts=listed)
    async with (
        canary() as (port, connections),
        served(tmp_path, FakeService(statuses=[SEEING]), settings=settings) as front,
    ):
        for url in INSIDE:
            await refused(front, url.replace("{port}", str(port)))
        assert connections == []


async def test_redirect_leads_nowhere_inside(tmp_path: Path) -> None:
    """The host is listed, and sends whoever asks to an address that is not."""
    async with canary() as (port, connections), image_host() as host:
        settings = HttpSettings(handler_cleanup_seconds=0.2, media_hosts=(host.entry,))
        async with served(tmp_path, FakeService(statuses=[SEEING]), settings=settings) as front:
            for inside in (f"http://127.0.0.1:{port}/", f"http://localhost:{port}/", "file:///etc/passwd", "//[::1]/"):
                host.redirect_to = inside
                await_url = {"type": "image_url", "image_url": {"url": host.url("/redirect")}}
                answer = await front.post(
                    CHAT, {"model": "smol", "messages": [{"role": "user", "content": [await_url]}]}
                )
                assert answer.status == 400
        assert connections == []


@pytest.mark.parametrize(
    "source", ["http://127.0.0.1/x", "hf:../../x", "ollama:127.0.0.1:80/x/y", "hf:a/b@http://x", "file:///x"]
)
async def test_source_of_an_installation_names_no_address(tmp_path: Path, source: str) -> None:
    """Registries are the configuration's: a source says which model, and never where."""
    from llmvisor.control.api import JobParams, JobRequest  # noqa: PLC0415
    from llmvisor.errors import InvalidRequest  # noqa: PLC0415
    from llmvisor.fetch.failures import FetchProblem  # noqa: PLC0415
    from llmvisor.fetch.ollama_manifest import parse_source  # noqa: PLC0415
    from llmvisor.jobs.params import check_request  # noqa: PLC0415

    try:
        check_request(JobRequest(type="install", params=JobParams(source=source)))
    except InvalidRequest:
        return
    # What its form lets through is taken apart once, and becomes a path on the registry's own host.
    try:
        found = parse_source(source)
    except FetchProblem:
        return
    assert "127.0.0.1" not in found.namespace
