"""On what terms a request is served: whose it is, how urgent, until when. From its headers, and from its key."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Awaitable, Callable

from aiohttp import web

from llmvisor import limits
from llmvisor.errors import InvalidRequest, RequestTimeout
from llmvisor.http.connections import is_unix
from llmvisor.http.front import FRONT
from llmvisor.keys.gate import KEY
from llmvisor.services.service import Terms
from llmvisor.supervision.scheduling.effects import Priority

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEADLINE = web.RequestKey("deadline", float)
"""When the request is wanted no more, on the daemon's monotonic clock, which is the loop's."""
PRIORITY_HEADER = "X-Priority"
TIMEOUT_HEADER = "X-Request-Timeout"
RESUME_HEADER = "X-LLMVISOR-Resume"
_PRIORITIES: dict[str, Priority] = {"low": "low", "normal": "normal", "high": "high"}
_CREDENTIALS = struct.Struct("3i")
"""pid, uid and gid of a Unix socket's other end, as Linux gives them."""


def terms_of(request: web.Request, *, user: str | None = None) -> Terms:
    """The terms of a request; `user` is whom it names itself, where no key says whose it is.

    Raises `InvalidRequest`.
    """
    key = KEY.get()
    priority = _priority(request)
    return Terms(
        client=key.name if key is not None else (user or _peer(request))[: limits.client_name_chars_max],
        priority=priority if key is None else key.capped(priority),
        deadline=request.get(DEADLINE),
        resume=request.headers.get(RESUME_HEADER, "").strip().lower() != "off",
    )


def _priority(request: web.Request) -> Priority:
    said = request.headers.get(PRIORITY_HEADER)
    if said is None:
        return "normal"
    found = _PRIORITIES.get(said.strip().lower())
    if found is None:
        raise InvalidRequest(f"{PRIORITY_HEADER}: expected low, normal or high, found {said!r:.60}")
    return found


def has_deadline(request: web.Request) -> bool:
    return TIMEOUT_HEADER in request.headers


async def within_deadline(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The answer, if it has come by the request's deadline, which is counted from here.

    What waits in a model's queue or runs in its worker is ended by the scheduler; this ends all else, a little later.
    Raises `InvalidRequest`, `RequestTimeout`.
    """
    request[DEADLINE] = deadline = _deadline(request)
    timer = asyncio.timeout_at(deadline + limits.request_timeout_grace_seconds)
    try:
        async with timer:
            return await handler(request)
    except TimeoutError:
        if not timer.expired():
            raise
        raise RequestTimeout("the request's time is over") from None


def _deadline(request: web.Request) -> float:
    said = request.headers[TIMEOUT_HEADER]
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= limits.request_timeout_seconds_max:
        at_most = f"{limits.request_timeout_seconds_max:.0f}"
        raise InvalidRequest(f"{TIMEOUT_HEADER}: expected seconds, up to {at_most}, found {said!r:.60}")
    return request.app[FRONT].clock.monotonic() + seconds


def _peer(request: web.Request) -> str:
    """Where a request comes from. Of this machine's own clients each process is one where the socket tells it, else
    each connection: all of them have the same address."""
    transport = request.transport
    if transport is None:
        return ""
    if is_unix(transport):
        return _unix_peer(transport.get_extra_info("socket"))
    peer: tuple[object, ...] = transport.get_extra_info("peername") or ("",)
    host = str(peer[0])
    return f"{host}:{peer[1]}" if host.startswith(("127.", "::1")) and len(peer) > 1 else host


def _unix_peer(connection: socket.socket | None) -> str:
    option = getattr(socket, "SO_PEERCRED", None)  # Linux alone has it
    if connection is None or option is None:
        return "unix"
    try:
        pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    except OSError:
        return "unix"  # gone already
    return f"unix:{pid}"
