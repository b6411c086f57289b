"""aiohttp's server with two things it lacks: a bound on connections, and refusals of broken HTTP as JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from llmvisor.errors import InternalError, InvalidRequest
from llmvisor.http.answers import error_answer

_logger = structlog.get_logger("llmvisor.http")


class FrontProtocol(RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What the parser refused, and what escaped every handler; the connection ends after it."""
        if status < 500:
            response = error_answer(InvalidRequest(f"the request is not valid HTTP: {(message or 'unknown')[:200]}"))
            response.set_status(status)
        else:
            _logger.error("a connection failed", path=request.path, exc_info=exc)
            response = error_answer(InternalError("an internal error"))
        response.force_close()
        return response


class FrontServer(web.Server):
    """Makes a `FrontProtocol` for each connection, and ends those that are too many."""

    def __init__(self, inner: web.Server, *, connections_max: int, **options: Any) -> None:
        super().__init__(
            inner.request_handler,
            request_factory=inner.request_factory,
            handler_cancellation=inner.handler_cancellation,
            loop=asyncio.get_running_loop(),
        )
        self._connections_max = connections_max
        self._options = options

    def __call__(self) -> RequestHandler:
        return FrontProtocol(self, loop=asyncio.get_running_loop(), **self._options)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > self._connections_max:
            transport.abort()


class FrontRunner(web.AppRunner):
    """`web.AppRunner` over a `FrontServer`."""

    __slots__ = ("_connections_max",)

    def __init__(self, app: web.Application, *, connections_max: int, **options: Any) -> None:
        super().__init__(app, **options)
        self._connections_max = connections_max

    async def _make_server(self) -> web.Server:
        inner = await super()._make_server()
        return FrontServer(inner, connections_max=self._connections_max, **inner._kwargs)  # noqa: SLF001  # aiohttp has no other way in
