"""A host of large files on loopback, which can be told to misbehave as hosts do."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Asked:
    """One request."""

    path: str
    start: int
    end: int | None
    """Exclusive; None for one without a range."""
    headers: dict[str, str]
    sent_bytes: int = 0


@dataclass
class Fault:
    """What is wrong with one answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut_after_bytes: int | None = None
    """The connection breaks after so many."""
    extra: bytes = b""
    """Sent behind what was asked for, in an answer that says no length."""
    shift: int = 0
    """The answer begins so many bytes later than it was asked for, and says so."""


@dataclass
class RangeHost:
    """What it has, what it was asked for, and how it answers."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    etags: dict[str, str] = field(default_factory=dict[str, str])
    redirects: dict[str, str] = field(default_factory=dict[str, str])
    takes_ranges: bool = True
    says_length: bool = True
    piece_bytes: int = 64 * 1024
    pause_seconds: float = 0.0
    """After each such piece."""
    faults: deque[Fault | None] = field(default_factory=deque[Fault | None])
    """One for each of the next requests; None is a good answer."""
    refuse_all_but: str = ""
    """What the agent of those begins with who may have files below `/files/`."""
    port: int = 0
    asked: list[Asked] = field(default_factory=list[Asked])
    open: int = 0
    open_most: int = 0

    def url(self, path: str = "/model.gguf", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def sent_bytes(self) -> int:
        return sum(asked.sent_bytes for asked in self.asked)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path in self.redirects:
            self.asked.append(Asked(request.path, 0, None, dict(request.headers)))
            raise web.HTTPFound(self.redirects[request.path])
        self.open += 1
        self.open_most = max(self.open, self.open_most)
        try:
            return await self._answer(request)
        finally:
            self.open -= 1

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        end = int(found[2]) + 1 if found and found[2] else None
        asked = Asked(request.path, start, end, dict(request.headers))
        self.asked.append(asked)
        fault = (self.faults.popleft() if self.faults else None) or Fault()
        agent = request.headers.get("User-Agent", "")
        if request.path.startswith("/files/") and not agent.startswith(self.refuse_all_but):
            return web.Response(status=403)
        if request.path not in self.files:
            return web.Response(status=404)
        if fault.status is not None:
            return web.Response(status=fault.status, headers=fault.headers)
        content = self.files[request.path]
        headers = dict(fault.headers)
        if request.path.endswith("/"):
            headers["Content-Type"] = "text/html"
        if request.path in self.etags:
            headers["ETag"] = self.etags[request.path]
        if not found or not self.takes_ranges:
            return await self._send(request, 200, headers, content, asked, fault)
        start += fault.shift
        if start >= len(content):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        part = content[start:end]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        return await self._send(request, 206, headers, part, asked, fault)

    async def _send(
        self, request: web.BaseRequest, status: int, headers: dict[str, str], part: bytes, asked: Asked, fault: Fault
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        if self.says_length and not fault.extra:
            response.content_length = len(part)
        part += fault.extra
        with suppress(ConnectionError):
            await response.prepare(request)
            for at in range(0, len(part), self.piece_bytes):
                piece = part[at : at + self.piece_bytes]
                if fault.cut_after_bytes is not None and at + len(piece) > fault.cut_after_bytes:
                    await response.write(piece[: fault.cut_after_bytes - at])
                    await asyncio.sleep(0.05)  # what was written is to arrive before the end
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(piece)
                asked.sent_bytes += len(piece)
                await asyncio.sleep(self.pause_seconds)
        return response


@asynccontextmanager
async def range_host(**options: bool | float) -> AsyncGenerator[RangeHost]:
    """Serves until the `with` ends."""
    host = RangeHost(**options)  # pyright: ignore[reportArgumentType] - the fields that tests set are plain
    runner = web.ServerRunner(web.Server(host.answer, handler_cancellation=True), shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host.port = next(address[1] for address in runner.addresses if not isinstance(address, str))
        yield host
    finally:
        await runner.cleanup()
