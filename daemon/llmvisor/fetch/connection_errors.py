"""What a person is told of a connection that failed: never an address, which may be signed or hold a login."""

from __future__ import annotations

import aiohttp


def reason(error: Exception) -> str:  # noqa: PLR0911 - one for each
    """In a few words. The libraries' own may have whole addresses and headers in them."""
    match error:
        case TimeoutError():
            return "the server is silent"
        case aiohttp.TooManyRedirects() | aiohttp.InvalidURL():
            return "the server redirects in circles, or to what is no address"
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answered with status {error.status}"
        case aiohttp.ClientResponseError():
            return "the server answered with what is no HTTP, or has headers too long"
        case aiohttp.ClientConnectorError():
            return f"{error.host} cannot be reached: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "the connection ended too early"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return type(error).__name__
