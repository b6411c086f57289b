"""What a request over TCP has to present before it is answered, and what its key is counted for."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping

from aiohttp import web

from llmvisor.errors import InvalidApiKey, PermissionDenied
from llmvisor.keys.bucket import Rate
from llmvisor.keys.gate import KEY, Gate
from llmvisor.keys.key import ApiKey

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_KEY = web.RequestKey("api_key", ApiKey)
"""The key that a request has presented."""
RATE = web.RequestKey("rate", Rate)
"""What its rate leaves, for the headers of the answer."""

CHALLENGE = 'Bearer realm="llmvisor"'
EXPOSED = "X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests"
_OPEN = frozenset({"/health", "/livez", "/readyz"})
_BEARER = "bearer "


def is_open(path: str) -> bool:
    """Whether a path tells everybody what it tells: probes have no keys."""
    return path in _OPEN


async def admit(request: web.Request, gate: Gate, *, management: bool) -> ApiKey | None:
    """The key of a request over TCP; None where none is asked for. Management always asks for one.

    Raises `InvalidApiKey`, `PermissionDenied`, `StoreUnavailable`.
    """
    if not management and (not gate.asked or is_open(request.path)):
        return None
    key = await gate.check(presented(request))
    scope = "management" if management else "inference"
    # What a daemon has to say of its models is of use to whoever manages it, too.
    if not key.allows(scope) and (request.method != "GET" or not key.allows("management")):
        raise PermissionDenied(f"the API key '{key.name}' is not for {scope}")
    request[API_KEY] = key
    KEY.set(key)
    return key


async def counted(request: web.Request, gate: Gate, key: ApiKey, handler: Handler) -> web.StreamResponse:
    """The answer to a request that counts for its key. Raises `RateLimited`."""
    try:
        usage = gate.enter(key)
    finally:
        if (rate := gate.rate(key)) is not None:
            request[RATE] = rate
    try:
        return await handler(request)
    finally:
        usage.running -= 1


def presented(request: web.Request) -> str | None:
    """The key of `Authorization: Bearer` or `x-api-key`. Raises `InvalidApiKey` for what is neither."""
    given = request.headers.getall("Authorization", [])
    if not given:
        given_bare = request.headers.getall("x-api-key", [])
        if len(given_bare) > 1:
            raise InvalidApiKey("a request presents one API key")
        return given_bare[0].strip() if given_bare and given_bare[0].strip() else None
    if len(given) > 1 or not given[0].lower().startswith(_BEARER):
        raise InvalidApiKey("the Authorization header is not `Bearer KEY`")
    return given[0][len(_BEARER) :].strip() or None


def stamp(request: web.Request, headers: MutableMapping[str, str]) -> None:
    """What the answer says of the key's rate, under the names that OpenAI's clients know."""
    rate = request.get(RATE)
    if rate is not None:
        headers["X-RateLimit-Limit-Requests"] = str(rate.limit)
        headers["X-RateLimit-Remaining-Requests"] = str(rate.remaining)
        headers["X-RateLimit-Reset-Requests"] = f"{math.ceil(rate.reset_seconds)}s"
