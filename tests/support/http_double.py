"""A server on loopback in a thread of its own, for doubles of registries: blobs with ranges, and faults on request."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web
from multidict import CIMultiDict

CHUNK_BYTES = 64 * 1024
START_SECONDS_MAX = 10.0


@dataclass(frozen=True)
class Fault:
    """What one answer does instead of what it should."""

    status: int | None = None
    """Answer with this and nothing else."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut_after_bytes: int | None = None
    """Drop the connection so far into the body."""
    content: bytes | None = None
    """Serve this instead."""
    ignore_range: bool = False


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]


class HttpDouble:
    """Serves `answer` on two origins, one of which plays the content's own host, until the `with` ends.

    A fault stands under the beginning of a path, and is used up by one request; those of `/cdn` hit blobs.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.url = ""
        self.cdn_url = ""
        """Another origin: the same server by its other name."""
        self._blobs: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)
        self._started = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_SECONDS_MAX)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def add_blob(self, content: bytes) -> str:
        """Keep a content for the content's host; gives its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return digest

    def blob(self, digest: str) -> bytes | None:
        return self._blobs.get(digest)

    def asked_of(self, beginning: str, method: str | None = None) -> list[Asked]:
        """The requests whose paths begin with this."""
        return [one for one in self.asked if one.path.startswith(beginning) and method in {None, one.method}]

    async def answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        """What the registry says; a `fault` left to it is one of a content that it sends itself."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------- what it sends

    def to_cdn(self, digest: str, headers: Mapping[str, str] | None = None, *, status: int = 302) -> web.Response:
        """A redirect to the content's host, signed as such hosts have it."""
        location = f"{self.cdn_url}/cdn/{digest}?Expires=9999999999&Signature=abc"
        return web.Response(status=status, headers={"Location": location, **(headers or {})})

    async def send(
        self, request: web.BaseRequest, content: bytes, headers: Mapping[str, str], fault: Fault | None
    ) -> web.StreamResponse:
        """A content, or the range of it that was asked for."""
        fault = fault or Fault()
        content = content if fault.content is None else fault.content
        first, last, status = 0, len(content) - 1, 200
        wanted = request.headers.get("Range")
        fresh = request.headers.get("If-Range") in {None, headers.get("ETag")}
        if wanted and fresh and not fault.ignore_range:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(begin), min(int(end or last), last), 206
            if first >= len(content):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        response = web.StreamResponse(status=status, headers=CIMultiDict(headers))
        response.headers["Accept-Ranges"] = "bytes"
        response.content_length = last - first + 1
        if status == 206:
            response.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        await response.prepare(request)
        if request.method != "HEAD":
            await _write(request, response, content[first : last + 1], fault.cut_after_bytes)
        return response

    # --------------------------------------------------------------------------------------------------- the server

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(Asked(request.method, request.host, request.path, dict(request.headers), dict(request.query)))
        fault = self._fault(request)
        if fault is not None and fault.status is not None:
            return web.Response(status=fault.status, headers=fault.headers, text="a fault that was asked for")
        if request.path.startswith("/cdn/"):
            return await self._serve_blob(request, fault)
        return await self.answer(request, fault)

    async def _serve_blob(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        if "Authorization" in request.headers:  # S3 takes one mechanism only, and the signature is one
            return web.Response(status=400, text="<Error><Code>InvalidArgument</Code></Error>")
        content = self.blob(request.path.removeprefix("/cdn/"))
        if content is None or "Signature" not in request.query:
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        return await self.send(request, content, {"ETag": etag}, fault)

    def _fault(self, request: web.BaseRequest) -> Fault | None:
        for beginning, faults in self.faults.items():
            # What goes wrong with a content waits for somebody who wants the content.
            if faults and request.path.startswith(beginning) and (faults[0].status or request.method != "HEAD"):
                return faults.pop(0)
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = next(address[1] for address in runner.addresses if not isinstance(address, str))
            self.url, self.cdn_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()


async def _write(
    request: web.BaseRequest, response: web.StreamResponse, content: bytes, cut_after_bytes: int | None
) -> None:
    end = len(content) if cut_after_bytes is None else min(cut_after_bytes, len(content))
    try:
        for place in range(0, end, CHUNK_BYTES):
            await response.write(content[place : min(place + CHUNK_BYTES, end)])
    except ConnectionError:
        return  # the client left
    if cut_after_bytes is not None and request.transport is not None:
        request.transport.close()  # what was written still goes out
