"""Where a file's bytes come from: its own address, and then wherever that one redirects, until that is over."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
from yarl import URL

from llmvisor.fetch.failures import FetchProblem

_SECRETS = frozenset({"authorization", "cookie"})


def check_stayed_secure(response: aiohttp.ClientResponse) -> None:
    """Raises `FetchProblem` (refused) where an answer came by http in the end, and https was asked."""
    if response.url.scheme != "https" and any(earlier.url.scheme == "https" for earlier in response.history):
        message = f"{response.history[0].url.host} redirects from https to http"
        raise FetchProblem("refused", message, hint="tell those who run the source")


class Route:
    """Remembers a redirect: a hub is asked once for a file, and its network of hosts for the thousand pieces of it."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._source = URL(url)
        self._headers = dict(headers)
        self._target: URL | None = None

    @property
    def address(self) -> URL:
        """For the next request."""
        return self._target or self._source

    def headers(self, address: URL) -> dict[str, str]:
        """What goes with a request there: logins are for the source alone."""
        if address.origin() == self._source.origin():
            return dict(self._headers)
        return {name: value for name, value in self._headers.items() if name.lower() not in _SECRETS}

    def arrived(self, response: aiohttp.ClientResponse) -> None:
        """Look at the way that an answer took. Raises `FetchProblem` where it left https."""
        check_stayed_secure(response)
        if response.history and response.status in {200, 206}:
            self._target = response.url

    def lost(self, address: URL) -> bool:
        """An address gives nothing any more: whether it was a redirect's, so that the source may name another one."""
        if address == self._source:
            return False
        if address == self._target:
            self._target = None
        return True
