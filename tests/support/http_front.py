"""The real HTTP front on loopback and on a Unix socket, over a fake service and a fake control."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.support.fake_control import FakeControl
from tests.support.fake_service import FakeService

from llmvisor.clock import SystemClock
from llmvisor.http.ids import Ids
from llmvisor.http.server import build_app, runner
from llmvisor.http.settings import HttpSettings
from llmvisor.keys.gate import Gate
from llmvisor.keys.key import ApiKey
from llmvisor.services.metered import MeteredService
from llmvisor.store.usage import EndedRequest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of each event, `[DONE]` as text; comments left out."""
        assert self.headers["Content-Type"].startswith("text/event-stream")
        data = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]


@dataclass
class Served:
    """What is being served, and clients of it."""

    port: int
    socket_path: Path
    tcp: aiohttp.ClientSession
    unix: aiohttp.ClientSession
    app: web.Application
    service: FakeService = field(default_factory=FakeService)
    control: FakeControl = field(default_factory=FakeControl)
    ended: list[EndedRequest] = field(default_factory=list[EndedRequest])
    """What was written down of requests."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, **options: Any) -> Answer:
        return await self._ask(self.tcp.get(self.url + path, **options))

    async def post(self, path: str, body: object, **options: Any) -> Answer:
        return await self._ask(self.tcp.post(self.url + path, json=body, **options))

    async def post_bytes(self, path: str, body: bytes) -> Answer:
        return await self._ask(self.tcp.post(self.url + path, data=body, headers=JSON_TYPE))

    async def chat(self, content: str = "hi", **fields: Any) -> Answer:
        return await self.post(CHAT, {"messages": [{"role": "user", "content": content}], **fields})

    async def manage(self, method: str, path: str, **options: Any) -> Answer:
        """A request over the Unix socket."""
        return await self._ask(self.unix.request(method, "http://localhost" + path, **options))

    async def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes; send `Connection: close`."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for bytes of the test's own; what it leaves open is closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def hang_up(self) -> None:
        """Close every connection of `connect`."""
        for writer in self.writers:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _ask(self, call: Any) -> Answer:
        async with call as response:
            return Answer(response.status, response.headers, await response.read())


@asynccontextmanager
async def served(
    folder: Path,
    service: FakeService | None = None,
    control: FakeControl | None = None,
    settings: HttpSettings | None = None,
    keys: Sequence[ApiKey] = (),
) -> AsyncGenerator[Served]:
    """The front, accepting on both, until the `with` ends."""
    service, control, clock = service or FakeService(), control or FakeControl(), SystemClock()
    ended: list[EndedRequest] = []
    gate = Gate(folder, keys, clock=clock)
    await gate.open()
    app = build_app(
        service=MeteredService(service, clock=clock),
        control=control,
        settings=settings or HttpSettings(handler_cleanup_seconds=0.2),
        clock=clock,
        ids=Ids(clock, os.urandom),
        resolve=service.resolve,
        record=ended.append,
        gate=gate,
    )
    front = runner(app)
    await front.setup()
    socket_path = folder / "control.sock"
    try:
        await web.TCPSite(front, "127.0.0.1", 0).start()
        await web.UnixSite(front, str(socket_path)).start()
        port: int = next(address[1] for address in front.addresses if not isinstance(address, str))
        unix = aiohttp.UnixConnector(path=str(socket_path))
        async with aiohttp.ClientSession() as tcp, aiohttp.ClientSession(connector=unix) as over_unix:
            it = Served(port, socket_path, tcp, over_unix, app, service, control, ended=ended)
            try:
                yield it
            finally:
                await it.hang_up()
    finally:
        control.close()
        await front.cleanup()
