"""A host of images on loopback, whose paths misbehave each in their own way."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "
CHUNK = bytes(64 * 1024)


@dataclass
class ImageHost:
    """What it was asked for, and how it is doing."""

    port: int = 0
    asked: list[str] = field(default_factory=list[str])
    """Paths with their queries, in order."""
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    open: int = 0
    """Answers that are being sent."""
    open_most: int = 0
    sent_bytes: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Waited for by `/gated`."""
    image: bytes = PNG
    """What the other paths have."""
    redirect_to: str = ""
    """Where `/redirect` leads."""

    def url(self, path: str = "/a.png", name: str = "127.0.0.1") -> str:
        return f"http://{name}:{self.port}{path}"

    @property
    def entry(self) -> str:
        """As it is listed."""
        return f"127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        self.headers.append(dict(request.headers))
        self.open += 1
        self.open_most = max(self.open, self.open_most)
        own = {"/gated": self._gated, "/endless": self._endless, "/silent": self._silent, "/cut": self._cut}
        try:
            return await own.get(request.path, self._at_once)(request)
        finally:
            self.open -= 1

    async def _at_once(self, request: web.Request) -> web.StreamResponse:
        found = {"/redirect": self.redirect_to, "/loop": f"/loop?{len(self.asked)}", "/relative": "a.png"}
        if request.path in found:
            return web.Response(status=302, headers={"Location": found[request.path]})
        if request.path == "/absent":
            raise web.HTTPNotFound(text="10.1.2.3 knows nothing of it")
        if request.path == "/bomb":
            return web.Response(body=gzip.compress(bytes(64 * 1024 * 1024)), headers={"Content-Encoding": "gzip"})
        bodies = {"/huge": CHUNK * 512, "/large": PNG + CHUNK, "/text": b"no image", "/sound": WAV}
        return web.Response(body=bodies.get(request.path, self.image))

    async def _gated(self, request: web.Request) -> web.StreamResponse:
        await self.gate.wait()
        return await self._at_once(request)

    async def _silent(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(CHUNK)
                self.sent_bytes += len(CHUNK)
        return response

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(PNG)
        assert request.transport is not None
        request.transport.abort()
        return response


@asynccontextmanager
async def image_host() -> AsyncGenerator[ImageHost]:
    """Serves until the `with` ends."""
    host = ImageHost()
    app = web.Application()
    app.router.add_get("/{path:.*}", host.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host.port = next(address[1] for address in runner.addresses if not isinstance(address, str))
        yield host
    finally:
        await runner.cleanup()
