"""Reading a request's body within its bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web

from llmvisor.errors import BodyTimeout, BodyTooLarge, InvalidRequest
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.settings import HttpSettings

T = TypeVar("T")


async def read_struct(request: web.Request, decoder: BodyDecoder[T], settings: HttpSettings) -> T:
    """The body, decoded. Raises `BodyTooLarge`, `BodyTimeout`, `InvalidRequest`."""
    return decoder.decode(await read_body(request, settings))


async def read_body(request: web.Request, settings: HttpSettings) -> bytes:
    """The whole body. Raises `BodyTooLarge`, `BodyTimeout`, `InvalidRequest`."""
    declared = request.content_length
    if declared is not None and declared > settings.max_body_bytes:
        raise _too_large(settings)
    content = request.content
    if content.is_eof() and content.exception() is None:
        body = content.read_nowait(-1)  # it came with the headers, as small ones do
        if len(body) > settings.max_body_bytes:
            raise _too_large(settings)
        return body
    try:
        return await _read_slowly(request, settings)
    except TimeoutError:
        seconds, rate = settings.body_seconds_max, settings.body_bytes_per_second_min
        raise BodyTimeout(f"the body did not come within {seconds:g} s and {rate} bytes/s") from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"the body is not valid HTTP: {error}") from None


async def _read_slowly(request: web.Request, settings: HttpSettings) -> bytes:
    # aiohttp has no deadline of its own for bodies. Each byte that comes moves ours on by what it may take.
    body = bytearray()
    begun = asyncio.get_running_loop().time()
    async with asyncio.timeout(settings.body_seconds_max) as deadline:
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > settings.max_body_bytes:
                raise _too_large(settings)
            earned_seconds = len(body) / settings.body_bytes_per_second_min
            deadline.reschedule(begun + settings.body_seconds_max + earned_seconds)
    return bytes(body)


def _too_large(settings: HttpSettings) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the bound of {settings.max_body_bytes} bytes (server.max_body_mb)")
