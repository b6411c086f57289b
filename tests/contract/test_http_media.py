"""Images and sounds that a request names by URL: fetched from listed hosts alone, and within bounds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.support.fake_service import LIGHT, FakeService
from tests.support.http_front import CHAT, Answer, Served, served
from tests.support.image_host import CHUNK, PNG, WAV, ImageHost, image_host
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http.media_fetch import MediaFetcher
from llmvisor.http.settings import HttpSettings
from llmvisor_runtimes.protocol import MEDIA_MARKER, ChatPrompt

SEEING = msgspec.structs.replace(LIGHT, capabilities=[*LIGHT.capabilities, "vision", "audio"])
URL = "messages[0].content[0].image_url.url"
pytestmark = pytest.mark.usefixtures("leak_check")


@asynccontextmanager
async def fronted(folder: Path, *hosts: str, **settings: Any) -> AsyncGenerator[Served]:
    """A front with one model that sees, which fetches from these hosts."""
    all_settings = HttpSettings(handler_cleanup_seconds=0.2, media_hosts=hosts, **settings)
    async with served(folder, FakeService(statuses=[SEEING]), settings=all_settings) as front:
        yield front


@pytest.fixture(autouse=True)
async def listened() -> None:
    """What uvloop opens with its first listener, and keeps, is there before leaks are counted."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()


@pytest.fixture
async def host(leak_check: None) -> AsyncGenerator[ImageHost]:
    async with image_host() as one:
        yield one


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


async def ask(front: Served, *parts: dict[str, Any], **fields: Any) -> Answer:
    return await front.post(CHAT, {"messages": [{"role": "user", "content": list(parts)}], **fields})


def seen(front: Served) -> list[bytes]:
    """What the last request brought to the service."""
    prompt = front.service.generations[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0].content.count(MEDIA_MARKER) == len(prompt.messages[0].media)
    return prompt.messages[0].media


def refused(answer: Answer, param: str = URL) -> str:
    """The message of a 400 that names the field."""
    assert answer.status == 400, answer.body
    assert answer.error["param"] == param
    return answer.error["message"]


# ----------------------------------------------------------------------------------------------------------- it works


async def test_media_of_a_listed_host_reach_the_model(host: ImageHost, tmp_path: Path) -> None:
    """Images and sounds, by whichever of the names; the host is told nothing of who asks."""
    parts = [image(host.url()), {"type": "text", "text": "?"}, {"type": "input_image", "image_url": host.url("/b.png")}]
    async with fronted(tmp_path, host.entry) as front:
        answer = await ask(front, *parts, {"type": "audio_url", "audio_url": {"url": host.url("/sound")}})
        assert answer.status == 200, answer.body
        assert seen(front) == [PNG, PNG, WAV]
    assert sorted(host.asked) == ["/a.png", "/b.png", "/sound"]
    for headers in host.headers:
        assert headers["Accept-Encoding"] == "identity"
        assert not {"Authorization", "Cookie", "Referer", "X-Request-Id"} & headers.keys()


async def test_media_url_that_comes_twice_is_fetched_once(host: ImageHost, tmp_path: Path) -> None:
    """The model sees it twice."""
    async with fronted(tmp_path, host.entry) as front:
        assert (await ask(front, image(host.url()), image(host.url()), stream=True)).status == 200
        assert seen(front) == [PNG, PNG]
    assert host.asked == ["/a.png"]


async def test_media_host_may_be_localhost(host: ImageHost, tmp_path: Path) -> None:
    """Listed by that name, it is this machine."""
    async with fronted(tmp_path, f"localhost:{host.port}") as front:
        assert (await ask(front, image(host.url(name="localhost")))).status == 200
        assert seen(front) == [PNG]


async def test_media_redirects_within_listed_hosts_are_followed(host: ImageHost, tmp_path: Path) -> None:
    """To another path of the same host, or to another that is listed."""
    host.redirect_to = host.url("/there.png", name="localhost")
    async with fronted(tmp_path, host.entry, f"localhost:{host.port}") as front:
        assert (await ask(front, image(host.url("/redirect")), image(host.url("/relative")))).status == 200
        assert seen(front) == [PNG, PNG]
    assert {"/redirect", "/there.png", "/relative", "/a.png"} == {*host.asked}


async def test_media_are_counted_with_the_prompt(host: ImageHost, tmp_path: Path) -> None:
    """`/tokenize` and `/apply-template` take the same messages."""
    body = {"messages": [{"role": "user", "content": [image(host.url())]}]}
    async with fronted(tmp_path, host.entry) as front:
        for path in ("/tokenize", "/apply-template"):
            answer = await front.post(path, body)
            assert answer.status == 200, answer.body
    assert host.asked == ["/a.png", "/a.png"]


# -------------------------------------------------------------------------------------------------- where it does not


@pytest.mark.parametrize("listed", [(), ("images.example",), ("127.0.0.1",), ("127.0.0.1:1",), ("localhost",)])
async def test_media_of_other_hosts_are_not_asked_for(host: ImageHost, tmp_path: Path, listed: tuple[str, ...]) -> None:
    """Off by default; by name and by port. The answer names the key, and the host got no connection."""
    async with fronted(tmp_path, *listed) as front:
        answer = await ask(front, image(host.url()))
        message = refused(answer)
        assert "nothing is fetched from" in message
        assert "server.media_hosts" in message
        assert answer.error["code"] == "unsupported_operation"
        assert front.service.generations == []
    assert host.asked == []


async def test_media_redirect_elsewhere_is_refused(host: ImageHost, tmp_path: Path) -> None:
    """The way around such a list: the host that it leads to is neither asked nor named."""
    async with image_host() as canary, fronted(tmp_path, host.entry) as front:
        inside = [
            canary.url(),
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "//images.example/",
            "http://[::1",
        ]
        for inner in [*inside, f"http://127.0.0.1:{host.port}@localhost:{canary.port}/"]:
            host.redirect_to = inner
            message = refused(await ask(front, image(host.url("/redirect"))))
            assert "redirect" in message or "no valid answer" in message
            assert str(canary.port) not in message
            assert "169.254" not in message
        assert canary.asked == []
        assert front.service.generations == []


async def test_media_redirects_end(host: ImageHost, tmp_path: Path) -> None:
    """A host that leads in circles is left after a few."""
    async with fronted(tmp_path, host.entry) as front:
        assert "too often" in refused(await ask(front, image(host.url("/loop"))))
    assert len(host.asked) == limits.media_redirects_max + 1


async def test_media_of_a_model_that_cannot_see_are_not_fetched(host: ImageHost, tmp_path: Path) -> None:
    """Its capabilities are known: nobody is asked for what would be thrown away."""
    settings = HttpSettings(handler_cleanup_seconds=0.2, media_hosts=(host.entry,))
    async with served(tmp_path, FakeService(statuses=[LIGHT]), settings=settings) as front:
        assert "vision" in refused(await ask(front, image(host.url())), "messages[0].content[0]")
    assert host.asked == []


# ---------------------------------------------------------------------------------------------- hosts that misbehave


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/absent", "answered with status 404"),
        ("/text", "expected a PNG"),
        ("/bomb", "compressed"),
        ("/huge", f"at most {limits.media_bytes_max} bytes"),
        ("/endless", f"at most {limits.media_bytes_max} bytes"),
        ("/cut", "no valid answer"),
    ],
)
async def test_media_that_are_none_are_refused(host: ImageHost, tmp_path: Path, path: str, reason: str) -> None:
    """Each with its reason, and without a word of what the host says."""
    async with fronted(tmp_path, host.entry) as front:
        message = refused(await ask(front, image(host.url(path))))
        assert reason in message
        assert "10.1.2.3" not in message
        assert front.service.generations == []
    # What the kernel's buffers hold comes on top of the bound.
    assert host.sent_bytes < limits.media_bytes_max + 16 * 1024 * 1024
    await eventually(lambda: host.open == 0, 5, "the host is left")


async def test_media_together_are_bounded(host: ImageHost, tmp_path: Path) -> None:
    """By what the body of a request with the files in it may have."""
    async with fronted(tmp_path, host.entry, max_body_bytes=len(PNG + CHUNK) * 2) as front:
        assert (await ask(front, *(image(host.url(f"/large?{n}")) for n in range(2)))).status == 200
        answer = await ask(front, *(image(host.url(f"/large?{n}")) for n in range(3)))
        assert answer.status == 400
        assert "server.max_body_mb" in answer.error["message"]


async def test_media_host_that_is_slow_is_left(host: ImageHost, tmp_path: Path) -> None:
    """One deadline for all: a host that never answers, and one that never ends its answer."""
    async with fronted(tmp_path, host.entry, media_seconds_max=0.3) as front:
        for path in ("/gated", "/silent"):
            assert "within 0.3 s" in refused(await ask(front, image(host.url(path))))
        await eventually(lambda: host.open == 0, 5, "the host is left")


async def test_media_host_that_is_not_there_is_told(tmp_path: Path, unused_tcp_port: int) -> None:
    """A refused connection."""
    async with fronted(tmp_path, f"127.0.0.1:{unused_tcp_port}") as front:
        answer = await ask(front, image(f"http://127.0.0.1:{unused_tcp_port}/a.png"))
        assert "cannot be reached" in refused(answer)


async def test_media_are_fetched_a_few_at_a_time(host: ImageHost, tmp_path: Path) -> None:
    """One request takes a few connections, and no more URLs than the bound."""
    async with fronted(tmp_path, host.entry) as front:
        several = [image(host.url(f"/gated?{n}")) for n in range(limits.media_fetches_max)]
        answering = asyncio.create_task(ask(front, *several))
        await eventually(lambda: host.open == limits.media_fetches_at_once_max, 5, "the first are asked for")
        host.gate.set()
        assert (await answering).status == 200
        assert len(seen(front)) == limits.media_fetches_max
        assert host.open_most == limits.media_fetches_at_once_max
        many = await ask(front, *several, image(host.url("/one-more")))
        assert str(limits.media_fetches_max) in refused(many, "messages")
    assert len(host.asked) == limits.media_fetches_max


async def test_media_fetch_ends_with_its_client(host: ImageHost, tmp_path: Path) -> None:
    """A client that leaves takes its fetches with it."""
    async with fronted(tmp_path, host.entry) as front:
        answering = asyncio.create_task(ask(front, image(host.url("/gated")), image(host.url("/silent"))))
        await eventually(lambda: host.open == 2, 5, "both are asked for")
        answering.cancel()
        await eventually(lambda: host.open == 0, 5, "both are left")
        assert front.service.generations == []


# -------------------------------------------------------------------------------------------------------------- names


class FixedResolver(AbstractResolver):
    """Every name leads to these addresses, each time to the next of them."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = answers
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host,
                host=each,
                port=port,
                family=family or socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for each in addresses
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]])
async def test_media_name_that_leads_inside_is_not_connected_to(host: ImageHost, addresses: list[str]) -> None:
    """A listed name whose owner lets it stand for this machine: no address of it is tried, and none is told."""
    resolver = FixedResolver(addresses)
    fetcher = MediaFetcher(HttpSettings(media_hosts=(f"images.example:{host.port}",)), resolver)
    try:
        with pytest.raises(InvalidRequest, match="no public host") as error:
            await fetcher.fetch(fetcher.allowed({host.url(name="images.example"): URL}))
    finally:
        await fetcher.close()
    assert resolver.asked == 1
    assert host.asked == []
    assert not [address for address in addresses if address in str(error.value)]


async def test_media_name_is_resolved_once_for_a_connection(host: ImageHost) -> None:
    """What was checked is what is connected to: a name that leads elsewhere the second time is not asked twice.

    `localhost` stands for the public name, as the only one that may lead to a host of this test.
    """
    resolver = FixedResolver(["127.0.0.1"], ["10.0.0.1"])
    fetcher = MediaFetcher(HttpSettings(media_hosts=(f"localhost:{host.port}",)), resolver)
    url = host.url(name="localhost")
    try:
        assert await fetcher.fetch(fetcher.allowed({url: URL})) == {url: PNG}
        assert resolver.asked == 1
        with pytest.raises(InvalidRequest, match="no public host"):
            await fetcher.fetch(fetcher.allowed({url: URL}))
    finally:
        await fetcher.close()
    assert host.asked == ["/a.png"]
