"""Connections that are held back while the daemon is upgraded, and those that another run of it takes over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

import pytest
from aiohttp import web
from tests.support.polling import eventually

from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.http.connections import FrontProtocol, FrontRunner, FrontServer
from llmvisor.http.settings import HttpSettings

REQUEST = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
KEEPALIVE_SECONDS = 0.3


class House:
    """A server, and a client's connection to it."""

    def __init__(self, server: FrontServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self._reader = reader
        self._writer = writer
        self.finish = asyncio.Event()
        """Requests for `slow` wait for it."""

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/slow":
            await self.finish.wait()
        return web.Response(text=f"answer to {request.path}")

    @property
    def protocols(self) -> list[FrontProtocol]:
        return [one for one in self.server.connections if isinstance(one, FrontProtocol)]

    def ask(self, path: str) -> None:
        self._writer.write(REQUEST % path.encode())

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self, seconds: float = 5) -> str:
        async with asyncio.timeout(seconds):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            return (await self._reader.readexactly(int(length.split(b":")[1]))).decode()

    async def is_silent(self) -> bool:
        with pytest.raises(TimeoutError):
            await self.answer(3 * KEEPALIVE_SECONDS)
        return True


@pytest.fixture
async def house() -> AsyncGenerator[House]:
    houses: list[House] = []
    app = web.Application()

    async def handle(request: web.Request) -> web.Response:
        return await houses[0].handle(request)

    app.router.add_get("/{path}", handle)
    runner = FrontRunner(app, HttpSettings(host="127.0.0.1", keepalive_seconds=KEEPALIVE_SECONDS))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    server = runner.server
    assert isinstance(server, FrontServer)
    houses.append(House(server, reader, writer))
    yield houses[0]
    writer.close()
    await runner.cleanup()


async def test_held_connection_is_neither_read_nor_closed(house: House) -> None:
    """What its client sends waits, for longer than an idle connection may; then it is answered."""
    house.ask("one")
    assert await house.answer() == "answer to /one"
    house.server.hold(unix=False)
    house.ask("two")
    assert await house.is_silent()
    house.server.release()
    assert await house.answer() == "answer to /two"


async def test_request_that_runs_is_finished_and_the_next_one_waits(house: House) -> None:
    """It counts as busy until it is answered; what its client asks right after is not begun."""
    house.ask("slow")
    await eventually(lambda: house.server.busy(unix=False) == 1)
    house.server.hold(unix=False)
    house.finish.set()
    assert await house.answer() == "answer to /slow"
    house.ask("next")
    assert await house.is_silent()
    assert house.server.busy(unix=False) == 0
    house.server.release()
    assert await house.answer() == "answer to /next"


async def test_connection_that_was_released_is_closed_when_it_is_idle(house: House) -> None:
    """Its time begins anew."""
    house.server.hold(unix=False)
    house.server.release()
    await eventually(lambda: not house.server.connections)


async def test_connection_goes_on_in_another_server_with_what_had_come(house: House) -> None:
    """Half a request here, the other half there: one answer."""
    request = REQUEST % b"half"
    house.write(request[:9])
    await eventually(lambda: [protocol.begun for protocol in house.protocols] == [request[:9]])
    given = house.server.hand_over()
    assert house.server.busy(unix=False) == 0
    copy = ConnectionHandover(os.dup(given[0].fd), given[0].begun)
    await house.server.adopt(copy)
    house.write(request[9:])
    assert await house.answer() == "answer to /half"
