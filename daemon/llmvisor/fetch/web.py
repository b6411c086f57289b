"""Small answers from registries: manifests, searches. Files are `download`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp

from llmvisor.clock import SystemClock
from llmvisor.fetch import limits
from llmvisor.fetch.answers import Interrupted, refusal
from llmvisor.fetch.connection_errors import reason
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.route import check_stayed_secure


async def get_bytes(
    session: aiohttp.ClientSession,
    url: str,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> bytes:
    """The body of an answer, within `registry_answer_bytes_max`. Raises `FetchProblem`, which names `what`."""
    try:
        async with (
            asyncio.timeout(limits.registry_seconds_max),
            session.get(url, headers=headers, params=params, max_redirects=limits.fetch_redirects_max) as response,
        ):
            check_stayed_secure(response)
            if response.status != 200:
                problem = refusal(response.status, response.headers, what, SystemClock().now())
                raise problem if isinstance(problem, FetchProblem) else _passing(what, problem)
            return await _body(response, what)
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, aiohttp.ClientSSLError) as error:
        raise FetchProblem("invalid", f"{what}: {reason(error)}", hint="check the address") from error
    except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
        raise FetchProblem("network", f"{what}: {reason(error)}", hint="check the connection and the source") from error


async def _body(response: aiohttp.ClientResponse, what: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limits.registry_answer_bytes_max:
            message = f"{what}: the answer has over {limits.registry_answer_bytes_max} bytes"
            raise FetchProblem("invalid", message, hint="check that the source is what it should be")
    return bytes(body)


def _passing(what: str, interrupted: Interrupted) -> FetchProblem:
    return FetchProblem(
        "network",
        f"{what}: {interrupted.reason}",
        hint="it is tried again; check the source if it stays so",
        retry_after_seconds=interrupted.retry_after_seconds,
    )
