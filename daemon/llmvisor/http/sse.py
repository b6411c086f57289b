"""Server-sent events to one client: heartbeats while there is nothing to say, and an end for clients that stall."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from llmvisor.errors import LlmvisorError
from llmvisor.http.answers import ENCODER, error_body
from llmvisor.http.front import Front
from llmvisor.log import get_logger

HEARTBEAT = b": waiting\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_log = get_logger(__name__)


class EventStream:
    """An answer of events. It starts with the first write, or with the first heartbeat.

    Used as `async with`. One timer looks after the connection: it sends the heartbeats, and aborts a connection whose
    client has taken nothing for `write_stall_seconds_max`, which cancels the handler as if the client had left.
    `headers` is asked for when the answer starts.
    """

    def __init__(self, request: web.Request, front: Front, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        self.response = web.StreamResponse(headers=_HEADERS)
        self._request = request
        self._clock = front.clock
        self._settings = front.settings
        self._headers = headers
        self._writer: AbstractStreamWriter | None = None
        self._beat: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._written_at = self._taken_at = front.clock.monotonic()
        self._taken_bytes = -(2**62)  # an earlier answer on the connection may still be in its buffer

    @property
    def started(self) -> bool:
        """Whether the status line has gone out, so that errors have to be events."""
        return self._writer is not None

    async def write(self, data: bytes) -> None:
        """Send whole events. Waits while the client is behind by more than the socket's buffers."""
        if self._beat is not None:
            await self._beat
        writer = self._writer or await self._start()
        self._written_at = self._clock.monotonic()
        await writer.write(data)

    async def fail(self, error: LlmvisorError) -> None:
        """End with an error event, or raise the error where it can still have its status."""
        if not self.started:
            raise error
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
        seconds = min(self._settings.heartbeat_seconds, self._settings.write_stall_seconds_max) / 4
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        transport = self._request.transport
        if transport is None:
            return  # the client has gone; the handler is being cancelled
        now = self._clock.monotonic()
        if buffered := transport.get_write_buffer_size():
            if self._stalled(buffered, now):
                _log.warning("a client takes nothing of its stream: connection ended", buffered_bytes=buffered)
                transport.abort()
                return
        else:
            self._taken_at = now
            if now - self._written_at >= self._settings.heartbeat_seconds and self._beat is None:
                self._beat = asyncio.get_running_loop().create_task(self._send_heartbeat(), name="heartbeat")
        self._arm()

    def _stalled(self, buffered: int, now: float) -> bool:
        taken = self._writer.output_size - buffered if self._writer else 0
        if taken > self._taken_bytes:
            self._taken_bytes, self._taken_at = taken, now
        return now - self._taken_at >= self._settings.write_stall_seconds_max

    async def _send_heartbeat(self) -> None:
        try:
            writer = self._writer or await self._start()
            self._written_at = self._clock.monotonic()
            await writer.write(HEARTBEAT)
        except ConnectionError:
            pass  # the client has gone; the handler is being cancelled
        finally:
            self._beat = None
