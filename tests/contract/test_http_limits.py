"""Bodies that are too large or too slow, connections that say nothing, and too many of them."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.http_front import CHAT, Served, served
from tests.support.polling import eventually

from llmvisor.http.settings import HttpSettings

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()


def settings(**fields: float) -> HttpSettings:
    return HttpSettings(handler_cleanup_seconds=0.2, lingering_seconds=0.2, **fields)  # pyright: ignore[reportArgumentType]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def status_of(front: Served, request: bytes) -> int:
    return int((await front.raw(request)).split()[1])


async def test_body_at_the_bound_is_read_and_past_it_refused(tmp_path: Path) -> None:
    """To the byte, announced or chunked, before or after it has come."""
    padded = BODY[:-1] + b" " * (1000 - len(BODY)) + b"}"
    head = HEAD + b"Connection: close\r\n"
    async with served(tmp_path, settings=settings(max_body_bytes=1000)) as front:
        for body, status in ((padded, 200), (padded + b" ", 413)):
            assert await status_of(front, head + b"Content-Length: %d\r\n\r\n" % len(body) + body) == status
            pieces = chunked(body[:500], body[500:])
            assert await status_of(front, head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces) == status
        refused = await front.post_bytes(CHAT, padded + b" ")
        assert refused.error["code"] == "body_too_large"


async def test_endless_chunks_are_refused_when_they_pass_the_bound(tmp_path: Path) -> None:
    """A body without an announced length is cut off at the bound, not collected."""
    async with served(tmp_path, settings=settings(max_body_bytes=10_000)) as front:
        reader, writer = await front.connect()
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            for _ in range(50):
                writer.write(b"%x\r\n%b\r\n" % (1000, b" " * 1000))
                await writer.drain()
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    """A length is announced and nothing sent: 408 at the deadline, and the connection ends."""
    async with served(tmp_path, settings=settings(body_seconds_max=0.3)) as front:
        answer = await front.raw(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert b" 408 " in answer.splitlines()[0]
        assert b"body_timeout" in answer


async def test_body_that_drips_is_given_up(tmp_path: Path) -> None:
    """A byte now and then does not keep the deadline away."""
    async with served(tmp_path, settings=settings(body_seconds_max=0.4, body_bytes_per_second_min=1000)) as front:
        reader, writer = await front.connect()
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
        begun = time.monotonic()
        answered = asyncio.ensure_future(reader.readline())
        with suppress(ConnectionError):
            while not answered.done() and time.monotonic() - begun < 10:
                writer.write(b" ")
                await asyncio.wait([answered], timeout=0.05)
        assert b" 408 " in await answered
        writer.close()


async def test_body_that_keeps_its_rate_is_read(tmp_path: Path) -> None:
    """A slow link that is fast enough gets more time than the bare deadline."""
    async with served(tmp_path, settings=settings(body_seconds_max=0.2, body_bytes_per_second_min=50)) as front:
        reader, writer = await front.connect()
        writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        for at in range(0, len(BODY), 10):
            writer.write(BODY[at : at + 10])
            await asyncio.sleep(0.1)  # what is measured is a link of this speed
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: 127", b"GET / HTTP/1.1\r\nA: b\r\n"]
)
async def test_connection_that_says_nothing_is_closed(tmp_path: Path, sent: bytes) -> None:
    """Silence, a cut request line and half of the headers all end at the keep-alive deadline."""
    async with served(tmp_path, settings=settings(keepalive_seconds=0.4)) as front:
        reader, writer = await front.connect()
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_idle_connection_is_closed_after_its_answer(tmp_path: Path) -> None:
    """A connection is kept for the next request, and not for ever."""
    async with served(tmp_path, settings=settings(keepalive_seconds=0.4)) as front:
        reader, writer = await front.connect()
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b'"ok"' in await asyncio.wait_for(reader.readuntil(b"}"), 5)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_connections_past_the_bound_are_refused_and_room_comes_back(tmp_path: Path) -> None:
    """As many as allowed are served, the next is closed, and one that leaves makes room."""
    async with served(tmp_path, settings=settings(connections_max=3)) as front:
        held = [await front.connect() for _ in range(3)]
        request = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        for reader, writer in held:
            writer.write(request)
            assert b'"ok"' in await asyncio.wait_for(reader.readuntil(b"}"), 5)
        reader, writer = await front.connect()
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert (await front.manage("GET", "/llm/status")).status == 200  # its owner gets in all the same
        for _, writer in held:
            writer.close()

        async def is_served() -> bool:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                return b" 200 " in await front.raw(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            return False

        for _ in range(100):
            if await is_served():
                return
        pytest.fail("no room came back")


async def test_slow_bodies_do_not_hold_up_others(tmp_path: Path) -> None:
    """Two hundred half-sent bodies, and a chat is answered at once."""
    async with served(tmp_path, settings=settings(body_seconds_max=20)) as front:
        slow = [await front.connect() for _ in range(200)]
        for _, writer in slow:
            writer.write(HEAD + b"Content-Length: 1000\r\n\r\nx")
        answer = await asyncio.wait_for(front.chat(), 5)
        assert answer.status == 200
        for _, writer in slow:
            writer.close()
        await eventually(lambda: front.service.running == 0)


async def test_chunks_that_are_none_are_refused(tmp_path: Path) -> None:
    """A body whose framing is broken is refused as JSON, and the front goes on.

    1. It comes in one packet with its headers: 400.
    2. It comes after them, when aiohttp's parser no longer tells who reads the body: the deadline ends it with 408.
    """
    async with served(tmp_path, settings=settings(body_seconds_max=0.2)) as front:
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        for bad in (b"ZZ\r\n{}\r\n0\r\n\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"-1\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n"):
            answer = await front.raw(head + bad)
            assert b" 400 " in answer.splitlines()[0]
            assert b'{"error":' in answer
            reader, writer = await front.connect()
            writer.write(head)
            assert (await front.get("/livez")).status == 200  # by now the head has been read
            writer.write(bad)
            assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] in {b"400", b"408"}
        assert (await front.chat()).status == 200


async def test_body_that_is_announced_first_is_asked_for(tmp_path: Path) -> None:
    """`Expect: 100-continue`, as curl sends it before large bodies."""
    async with served(tmp_path) as front:
        reader, writer = await front.connect()
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    """Two POSTs in one packet: two answers, the first one's first, each with its own id."""
    async with served(tmp_path) as front:
        sized = b"Content-Length: %d\r\n" % len(BODY)
        requests = [
            HEAD + sized + b"X-Request-Id: %b\r\n%b\r\n" % part + BODY
            for part in ((b"a", b""), (b"b", b"Connection: close\r\n"))
        ]
        answer = await front.raw(b"".join(requests))
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.index(b"X-Request-Id: a") < answer.index(b"X-Request-Id: b")


async def test_http_1_0_client_gets_a_stream_that_ends_with_the_connection(tmp_path: Path) -> None:
    """No chunks, which it would not understand."""
    body = BODY[:-1] + b', "stream": true}'
    request = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with served(tmp_path) as front:
        answer = await front.raw(request)
        assert b"chunked" not in answer.lower().partition(b"\r\n\r\n")[0]
        assert answer.endswith(b"data: [DONE]\n\n")
