"""aiohttp's server with what it lacks: bounds on connections and idle readers, and JSON for broken HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from aiohttp import http_parser, web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from llmvisor import limits
from llmvisor.errors import InternalError, InvalidRequest, StartError
from llmvisor.http.answers import error_answer
from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.http.peers import refused_peer
from llmvisor.http.settings import HttpSettings
from llmvisor.log import get_logger

_log = get_logger(__name__)


class FrontProtocol(RequestHandler):
    """One connection."""

    __slots__ = ("begun", "held", "unblocked")

    unblocked: int
    """How often the client has caught up after writing had to wait for it."""
    begun: bytes
    """What has come of a request whose headers are not whole yet."""
    held: bool
    """Nothing is read after the request that runs: what comes waits in the kernel, for whoever serves it then."""

    def data_received(self, data: bytes) -> None:
        before, waiter = self._request_count, self._waiter
        between = before == 0 or (waiter is not None and not waiter.done())
        super().data_received(data)
        self.begun = self.begun + data if between and self._request_count == before else b""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, and its client has been sent all of the last answer."""
        transport, waiter = self.transport, self._waiter
        if transport is None or transport.is_closing() or waiter is None or waiter.done() or self._messages:
            return False
        return transport.get_write_buffer_size() == 0

    @property
    def requests(self) -> int:
        """How many have come so far."""
        return self._request_count

    def hold(self) -> None:
        """Read no further request. What runs goes on, and its body is still read."""
        self.held = True
        if self.idle:
            self._pause_transport_reading()

    def release(self) -> None:
        """Read on."""
        self.held = False
        if not self._reading_paused and not self._buffer_paused:
            self._resume_transport_reading()
        if self.idle and self._keepalive_handle is None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def _process_keepalive(self) -> None:
        if self.held:
            self._keepalive_handle = None  # the client may have asked again: nobody looks at the moment
        else:
            super()._process_keepalive()

    async def _handle_request(
        self,
        request: BaseRequest,
        start_time: float | None,
        request_handler: Callable[[BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        answered = await super()._handle_request(request, start_time, request_handler)
        if self.held and request.content.is_eof():
            self._pause_transport_reading()
        return answered

    @property
    def blocked(self) -> bool:
        """Whether writing has to wait for the client."""
        return self._paused

    @property
    def unanswered(self) -> bool:
        """Whether its request is yet to come (it has only just connected), or has no answer yet."""
        request = self._current_request
        if request is not None:
            return request.writer.output_size == 0
        return self._request_count == 0 or bool(self._messages)

    def resume_writing(self) -> None:
        self.unblocked += 1
        super().resume_writing()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What the parser refused, and what escaped every handler; the connection ends after it."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client has gone, as aiohttp understands it
        if status < 500:
            response = error_answer(InvalidRequest(f"the request is not valid HTTP: {(message or 'unknown')[:200]}"))
            response.set_status(status)
        else:
            _log.error("a connection failed", path=request.path, exc_info=exc)
            response = error_answer(InternalError("an internal error"))
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: no other can follow")
        response.force_close()
        return response


class FrontServer(web.Server):
    """Makes a `FrontProtocol` for each connection, ends those that are too many, and those that take nothing.

    One timer looks at the connections that wait for their client, of streams and of other answers alike. One whose
    client has taken nothing for `write_stall_seconds_max` is aborted, which cancels its handler.
    """

    def __init__(self, inner: web.Server, settings: HttpSettings) -> None:
        super().__init__(
            inner.request_handler,
            request_factory=inner.request_factory,
            # Without it a client that leaves during a long prefill goes unnoticed.
            handler_cancellation=True,
            loop=asyncio.get_running_loop(),
        )
        self._settings = settings
        self._behind: dict[FrontProtocol, _Behind] = {}
        self._sweeping = False
        self._full = False
        self._managing: set[RequestHandler] = set()
        """Who is connected to the control socket."""

    def __call__(self) -> RequestHandler:
        settings = self._settings
        protocol = FrontProtocol(
            self,
            loop=asyncio.get_running_loop(),
            # Also the deadline of half-sent headers; aiohttp's default is over an hour.
            keepalive_timeout=settings.keepalive_seconds,
            lingering_time=settings.lingering_seconds,
            max_line_size=settings.header_bytes_max,
            max_field_size=settings.header_bytes_max,
            max_headers=limits.header_lines_max,
            auto_decompress=False,
            access_log=None,  # pyright: ignore[reportArgumentType]  # None is "no access log", as in run_app
        )
        protocol.unblocked = 0
        protocol.begun = b""
        protocol.held = False
        return protocol

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if is_unix(transport) and not self._admits(handler, transport):
            transport.abort()
            return
        _bound_send_buffer(transport)
        if not self._sweeping:
            self._arm()
        # The Unix socket stays open to those who manage the daemon.
        if len(self._connections) > self._settings.connections_max and not is_unix(transport):
            if not self._full:
                _log.warning("too many connections: refusing more", connections_max=self._settings.connections_max)
            self._full = True
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._managing.discard(handler)
        super().connection_lost(handler, exc)

    def _admits(self, handler: RequestHandler, transport: asyncio.Transport) -> bool:
        """Whether whoever connected to the control socket may use it."""
        connection = transport.get_extra_info("socket")
        reason = "it is gone" if connection is None else refused_peer(connection, shared=self._settings.control_shared)
        if reason is None and len(self._managing) >= self._settings.control_connections_max:
            reason = f"there are {len(self._managing)} connections already"
        if reason is not None:
            _log.warning("a connection to the control socket is refused", reason=reason)
            return False
        self._managing.add(handler)
        return True

    @property
    def unanswered(self) -> int:
        """Connections whose request is yet to come, or has no answer yet."""
        return sum(isinstance(protocol, FrontProtocol) and protocol.unanswered for protocol in self._connections)

    # ------------------------------------------------------------------------------------------------ handing over

    def hold(self, *, unix: bool) -> None:
        """Serve no further request, on TCP and, where it is said, on the Unix socket. What runs goes on."""
        for protocol, transport in self._front():
            if unix or not is_unix(transport):
                protocol.hold()

    def release(self) -> None:
        """Serve all of them again."""
        for protocol, _ in self._front():
            protocol.release()

    def busy(self, *, unix: bool) -> int:
        """Connections whose answer is under way."""
        return sum(not protocol.idle for protocol, transport in self._front() if unix or not is_unix(transport))

    def running(self) -> list[tuple[int, int]]:
        """A mark of each answer that is under way on TCP: another one for the next on the same connection."""
        return [(id(one), one.requests) for one, transport in self._front() if not (one.idle or is_unix(transport))]

    def hand_over(self) -> list[ConnectionHandover]:
        """Every connection that waits for a request.

        Nothing is read of them any more until this process has been executed anew, or `release` is called.
        """
        given: list[ConnectionHandover] = []
        for protocol, transport in self._front():
            connection = transport.get_extra_info("socket") if protocol.idle else None
            if connection is not None:
                protocol.hold()
                given.append(ConnectionHandover(connection.fileno(), protocol.begun))
        return given

    async def adopt(self, given: ConnectionHandover) -> None:
        """Go on with a connection that an earlier run of this process had. Raises OSError for what is none."""
        connection = socket.socket(fileno=given.fd)
        os.set_inheritable(given.fd, False)
        connection.setblocking(False)
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(self, connection)
        if given.begun:
            protocol.data_received(given.begun)

    def _front(self) -> list[tuple[FrontProtocol, asyncio.Transport]]:
        found: list[tuple[FrontProtocol, asyncio.Transport]] = []
        for protocol, transport in self._connections.items():
            assert isinstance(protocol, FrontProtocol)
            found.append((protocol, transport))
        return found

    # ------------------------------------------------------------------------------------------------ idle readers

    def _arm(self) -> None:
        self._sweeping = True
        asyncio.get_running_loop().call_later(self._settings.write_stall_seconds_max / 4, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        behind: dict[FrontProtocol, _Behind] = {}
        for protocol, transport in list(self._connections.items()):
            assert isinstance(protocol, FrontProtocol)
            waits = protocol.blocked or transport.is_closing()
            size = transport.get_write_buffer_size() if waits else 0
            if size == 0:
                continue
            last = self._behind.get(protocol)
            took = last is None or size < last.unsent_bytes or protocol.unblocked != last.unblocked
            behind[protocol] = _Behind(size, protocol.unblocked, now if last is None or took else last.since)
            if now - behind[protocol].since >= self._settings.write_stall_seconds_max:
                _log.warning("a client takes nothing of its answer: connection ended", unsent_bytes=size)
                transport.abort()
        self._behind = behind
        self._full = len(self._connections) > self._settings.connections_max
        self._sweeping = False
        if self._connections:
            self._arm()


class _Behind(NamedTuple):
    """A client that has something to take, as the last look found it."""

    unsent_bytes: int
    unblocked: int
    since: float
    """When it last took something."""


class FrontRunner(web.AppRunner):
    """`web.AppRunner` over a `FrontServer`."""

    __slots__ = ("_settings",)

    def __init__(self, app: web.Application, settings: HttpSettings) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=settings.handler_cleanup_seconds)
        self._settings = settings

    async def _make_server(self) -> web.Server:
        return FrontServer(await super()._make_server(), self._settings)


def is_unix(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection came over the Unix socket. Where that cannot be told any more it did not."""
    return isinstance(transport.get_extra_info("sockname"), str | bytes)


def check_parser() -> None:
    """Raises `StartError` where aiohttp would parse requests in Python: slower, and laxer in places."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError(
            "aiohttp's compiled HTTP parser is missing",
            hint="unset AIOHTTP_NO_EXTENSIONS, or install aiohttp from a wheel for this platform",
        )


def _bound_send_buffer(transport: asyncio.Transport) -> None:
    """Keep the kernel from running megabytes ahead of a slow client: its sequence would never be paused."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # gone already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
