"""Fetching the images and sounds that a request names by URL: from listed hosts alone, and within bounds.

What is connected to is what was checked: one reading of a URL, one resolution of its name, each redirect anew.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.media_hosts import HINT, MediaHosts, may_connect
from llmvisor.http.settings import HttpSettings
from llmvisor.log import get_logger

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": "llmvisor", "Accept": "image/*, audio/*", "Accept-Encoding": "identity"}
_log = get_logger(__name__)


class AddressRefused(Exception):
    """A listed name resolves to an address that is not public."""


class CheckedResolver(AbstractResolver):
    """Names to addresses, every one of which may be connected to."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises `AddressRefused`, `OSError`."""
        found = await self._inner.resolve(host, port, family)
        refused = [each["host"] for each in found if not may_connect(host.lower(), each["host"])]
        if refused:
            _log.warning("a media host is not public", host=host, addresses=refused)
            raise AddressRefused
        return found

    async def close(self) -> None:
        await self._inner.close()


class Target(NamedTuple):
    """A URL that may be fetched, read once, and the field that names it."""

    url: URL
    param: str


class MediaFetcher:
    """One client for all requests. It connects to nothing before it is asked to."""

    def __init__(self, settings: HttpSettings, resolver: AbstractResolver | None = None) -> None:
        self._settings = settings
        self._hosts = MediaHosts.of(settings.media_hosts)
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    def configure(self) -> None:
        """The settings have changed."""
        self._hosts = MediaHosts.of(self._settings.media_hosts)

    def allowed(self, wanted: Mapping[str, str]) -> dict[str, Target]:
        """What to fetch for these URLs, each of which comes with the field that names it.

        Raises `UnsupportedOperation` for a host that is not listed, `InvalidRequest` for what is no URL, and too many.
        """
        if len(wanted) > limits.media_fetches_max:
            message = f"messages: expected at most {limits.media_fetches_max} URLs to fetch, found {len(wanted)}"
            raise InvalidRequest(message, param="messages")
        return {url: Target(self._hosts.checked(url, param), param) for url, param in wanted.items()}

    async def fetch(self, wanted: Mapping[str, Target]) -> dict[str, bytes]:
        """What lies there, by the URL as it was written. Raises `InvalidRequest`, `UnsupportedOperation`."""
        if not wanted:
            return {}
        batch = _Batch(
            self._open(),
            self._hosts,
            seconds_max=self._settings.media_seconds_max,
            deadline=asyncio.get_running_loop().time() + self._settings.media_seconds_max,
            bytes_left=self._settings.max_body_bytes,
            places=asyncio.Semaphore(limits.media_fetches_at_once_max),
        )
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(batch.fetched(*each), name="fetch") for url, each in wanted.items()}
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(self._resolver or aiohttp.ThreadedResolver()),
                use_dns_cache=False,
                force_close=True,
                limit=limits.media_connections_max,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,  # a small answer must not unpack to gigabytes
                timeout=aiohttp.ClientTimeout(total=None),  # `_Batch` has the deadline
                trust_env=False,  # a proxy would resolve names by itself
            )
        return self._session


@dataclass
class _Batch:
    """What one request may still take."""

    session: aiohttp.ClientSession
    hosts: MediaHosts
    seconds_max: float
    deadline: float
    bytes_left: int
    places: asyncio.Semaphore

    async def fetched(self, target: URL, param: str) -> bytes:
        """Raises `InvalidRequest`, `UnsupportedOperation`. Messages name the host, not its address, and no path."""
        host = target.host
        try:
            async with asyncio.timeout_at(self.deadline), self.places:
                return await self._followed(target, param)
        except TimeoutError:
            reason = f"{host} did not send it within {self.seconds_max:g} s"
        except AddressRefused:
            reason = f"{host} is no public host"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Other errors carry the whole URL, which may be signed.
            cause = str(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else ""
            _log.info("a media host failed", host=host, error=type(error).__name__, cause=cause[:200])
            reason = f"{host} {_complaint(error)}"
        raise InvalidRequest(f"{param}: {reason}", param=param)

    async def _followed(self, target: URL, param: str) -> bytes:
        for _ in range(limits.media_redirects_max + 1):
            async with self.session.get(target, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await self._read(response, param)
            target = self._redirected(target, location, param)
        raise InvalidRequest(f"{param}: {target.host} redirects too often", param=param)

    def _redirected(self, source: URL, location: str, param: str) -> URL:
        target = source.join(URL(location))
        try:
            checked = self.hosts.checked(str(target), param)
        except InvalidRequest:
            _log.info("a media host redirects to one that is not listed", host=source.host, other=target.host)
            message = f"{param}: {source.host} redirects to where nothing is fetched from"
            raise UnsupportedOperation(message, param=param, hint=HINT) from None
        if source.scheme == "https" and checked.scheme == "http":
            raise InvalidRequest(f"{param}: {source.host} redirects from https to http", param=param)
        return checked

    async def _read(self, response: aiohttp.ClientResponse, param: str) -> bytes:
        host = response.url.host
        if response.status != 200:
            raise InvalidRequest(f"{param}: {host} answered with status {response.status}", param=param)
        if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise InvalidRequest(f"{param}: {host} sends it compressed, and was asked not to", param=param)
        data = bytearray()
        self._take(response.content_length or 0, 0, param)
        async for chunk in response.content.iter_any():
            self._take(len(data) + len(chunk), len(chunk), param)
            data += chunk
        return bytes(data)

    def _take(self, size_bytes: int, more_bytes: int, param: str) -> None:
        """Count what came. Raises `InvalidRequest` where this one, or all of them together, are too large."""
        if size_bytes > limits.media_bytes_max:
            raise InvalidRequest(f"{param}: expected at most {limits.media_bytes_max} bytes", param=param)
        self.bytes_left -= more_bytes
        if self.bytes_left < 0:
            raise InvalidRequest(f"{param}: it is one too many: together they are over server.max_body_mb", param=param)


def _complaint(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientSSLError):
        return "has no certificate that is trusted"
    return "cannot be reached" if isinstance(error, OSError) else "sent no valid answer"
