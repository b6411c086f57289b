"""Server-sent events to one client, with heartbeats while there is nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from llmvisor.errors import LlmvisorError
from llmvisor.http.answers import ENCODER, error_body
from llmvisor.http.front import ERROR, Front

HEARTBEAT = b": waiting\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream:
    """An answer of events. It starts with the first write, or with the first heartbeat.

    Used as `async with`. `headers` is asked for when the answer starts. Clients that stall are the server's business
    (`connections`), as they are for every answer.
    """

    def __init__(
        self,
        request: web.Request,
        front: Front,
        headers: Callable[[], Mapping[str, str]] = dict,
        waits_for: Callable[[], str] = str,
    ) -> None:
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._clock = front.clock
        self._heartbeat_seconds = front.settings.heartbeat_seconds
        self._headers = headers
        self._waits_for = waits_for
        self._writer: AbstractStreamWriter | None = None
        self._beat: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._written_at = front.clock.monotonic()

    @property
    def started(self) -> bool:
        """Whether the status line has gone out, so that errors have to be events."""
        return self._writer is not None

    async def write(self, data: bytes) -> None:
        """Send whole events. Waits while the client is behind by more than the buffers hold."""
        if self._beat is not None:
            await self._beat
        writer = self._writer or await self._start()
        self._written_at = self._clock.monotonic()
        await writer.write(data)
        await writer.drain()  # at once where the client is not behind

    async def fail(self, error: LlmvisorError) -> None:
        """End with an error event, or raise the error where it can still have its status."""
        if not self.started:
            raise error
        self._request[ERROR] = error.code
        await self.write(b"data: " + ENCODER.encode(error_body(error)) + b"\n\n")

    async def end(self) -> web.StreamResponse:
        """The finished answer."""
        if not self.started:
            await self._start()
        await self.response.write_eof()
        return self.response

    async def __aenter__(self) -> Self:
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    async def _start(self) -> AbstractStreamWriter:
        self.response.headers.update(self._headers())
        writer = await self.response.prepare(self._request)
        assert writer is not None, "an answer starts once"
        self._writer = writer
        return writer

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._heartbeat_seconds / 4, self._look)

    def _look(self) -> None:
        transport = self._request.transport
        if transport is None:
            return  # the client has gone; the handler is being cancelled
        silent = self._clock.monotonic() - self._written_at >= self._heartbeat_seconds
        # A client that has not taken what there is needs no sign of life.
        if silent and self._beat is None and transport.get_write_buffer_size() == 0:
            self._beat = asyncio.get_running_loop().create_task(self._send_heartbeat(), name="heartbeat")
        self._arm()

    async def _send_heartbeat(self) -> None:
        try:
            writer = self._writer or await self._start()
            self._written_at = self._clock.monotonic()
            waits_for = self._waits_for()
            await writer.write(HEARTBEAT if not waits_for else b": waiting, %b\n\n" % waits_for.encode())
        except ConnectionError:
            pass  # the client has gone; the handler is being cancelled
        finally:
            self._beat = None
