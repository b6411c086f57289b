"""Who may ask: Host against DNS rebinding, Origin and Sec-Fetch-Site against web pages. Pure.

The Unix socket is not asked these questions: no browser reaches it, and its file mode says who may.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from llmvisor.errors import HostNotAllowed, OriginNotAllowed, UnsupportedMediaType
from llmvisor.http.settings import HttpSettings

_AUTHORITY = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"https?://(?P<authority>.+)", re.ASCII)
_JSON = re.compile(r"application/json\s*(;.*)?", re.ASCII | re.IGNORECASE)
_SOCKET_ALONE = re.compile(r"/(keys)(/.*)?", re.DOTALL)
_MANAGEMENT = re.compile(
    r"/(llm|jobs|logs|events|config|usage|shutdown|restart|keys|internal/cache/clear)(/.*)?", re.DOTALL
)


@dataclass(slots=True)
class Guard:
    """The allowlists, from the settings."""

    hosts: frozenset[str]
    origins: frozenset[str]
    loopback_origins: bool
    every_origin: bool
    management: bool
    """Whether management paths answer on TCP."""

    @classmethod
    def of(cls, settings: HttpSettings) -> Self:
        origins = settings.cors_origins
        return cls(
            hosts=frozenset(name.lower().strip("[]") for name in (settings.host, *settings.allowed_hosts)),
            origins=frozenset(origin.lower().rstrip("/") for origin in origins),
            loopback_origins="loopback" in origins,
            every_origin="*" in origins,
            management=settings.management,
        )

    def take(self, other: Guard) -> None:
        """Allow what another one allows from now on."""
        self.hosts, self.origins = other.hosts, other.origins
        self.loopback_origins, self.every_origin = other.loopback_origins, other.every_origin
        self.management = other.management

    def check_host(self, headers: list[str], effective: str, local_address: str) -> None:
        """Raises `HostNotAllowed`.

        `headers` are all the Host headers, `effective` the host as the framework read it: in `POST http://evil/` the
        request line wins over the header. `local_address` is the address that the client connected to.
        """
        if len(headers) != 1:
            raise HostNotAllowed(f"a request needs exactly one Host header, found {len(headers)}")
        if headers[0] != effective:
            raise HostNotAllowed("the Host header is not the host of the request line")
        if names_loopback(headers[0]):
            return
        name = host_name(headers[0])
        if name is None or name not in self._hosts_of(local_address):
            raise HostNotAllowed(
                f"the host {headers[0][:100]!r} is not allowed",
                hint="use 127.0.0.1 or localhost, or list the name in server.allowed_hosts",
            )

    def check_origin(self, origins: list[str], fetch_site: str | None, host: str) -> str | None:
        """The Origin that may read the answer, None without one. Raises `OriginNotAllowed`."""
        if len(origins) > 1:
            raise OriginNotAllowed("a request has at most one Origin header")
        if not origins:
            if fetch_site in {"cross-site", "same-site"}:
                raise OriginNotAllowed("requests from other sites' pages need an Origin that is allowed")
            return None
        if self._origin_allowed(origins[0], host):
            return "*" if self.every_origin else origins[0]
        raise OriginNotAllowed(f"the origin {origins[0][:100]!r} is not allowed", hint="list it in server.cors_origins")

    def _hosts_of(self, local_address: str) -> frozenset[str]:
        # Who connects to an address may name it: a page that rebinds a name cannot, its Host is that name.
        return self.hosts - _UNSPECIFIED | {local_address.lower()}

    def _origin_allowed(self, origin: str, host: str) -> bool:
        if self.every_origin or origin.lower() in self.origins:
            return True
        match = _ORIGIN.fullmatch(origin)
        if match is None:
            return False
        if is_own_page(origin, host):
            return True
        return self.loopback_origins and names_loopback(match["authority"])


_UNSPECIFIED = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # what must not pass as a host name


def is_own_page(origin: str, host: str) -> bool:
    """Whether a page of this very address asks; the Host header has been checked."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and match["authority"].lower() == host.lower()


def host_name(authority: str) -> str | None:
    """`[::1]:80` → `::1`, lower case; None for what is no `name[:port]`."""
    match = _AUTHORITY.fullmatch(authority)
    return match["name"].strip("[]").lower() if match else None


@lru_cache(maxsize=256)
def names_loopback(authority: str) -> bool:
    """Whether `name[:port]` names `localhost` or a literal of 127.0.0.0/8 or ::1."""
    name = host_name(authority)
    if name is None or name == "localhost":
        return name is not None
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_content_type(content_types: list[str], content_encoding: str | None) -> None:
    """Raises `UnsupportedMediaType`. Any other type can be sent by a page that asks nobody."""
    if len(content_types) != 1 or not _JSON.fullmatch(content_types[0]):
        found = content_types[0][:100] if content_types else "none"
        raise UnsupportedMediaType(
            f"the Content-Type is {found!r}, but only JSON is read",
            hint="send the header Content-Type: application/json",
        )
    if content_encoding and content_encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"a body with Content-Encoding {content_encoding[:100]!r} is not read", hint="send it uncompressed"
        )


def strange_coding(transfer_encodings: list[str]) -> str | None:
    """What is not plain `chunked`: our parser would take `gzip, chunked` and hand on what is still packed."""
    if not transfer_encodings:
        return None
    strange = (value for value in transfer_encodings if value.strip().lower() != "chunked")
    return next(strange, None) if len(transfer_encodings) < 2 else ", ".join(transfer_encodings)


def is_management(path: str) -> bool:
    """Whether a decoded path belongs to those that answer on the Unix socket, and on TCP only where that is set."""
    return _MANAGEMENT.fullmatch(path) is not None


def is_for_the_socket_alone(path: str) -> bool:
    """Whether it never answers on TCP: who holds a key makes no others."""
    return _SOCKET_ALONE.fullmatch(path) is not None
