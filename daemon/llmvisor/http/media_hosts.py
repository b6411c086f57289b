"""Which addresses images and sounds are fetched from: the list of hosts, and what their names may resolve to. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from yarl import URL

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation

HINT = "add the host to server.media_hosts, or send the file itself as data:image/png;base64,…"

_AUTHORITY = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?"
_URL = re.compile(rf"(?P<scheme>https?)://{_AUTHORITY}(?:[/?#][^\s\\\x00-\x20\x7f]*)?", re.ASCII | re.IGNORECASE)
_ENTRY = re.compile(rf"(?P<wildcard>\*\.)?{_AUTHORITY}", re.ASCII)
_LAST_LABEL_IS_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
_USUAL_PORTS = {"http": 80, "https": 443}
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class MediaHosts:
    """The hosts that are listed, each with its port; a port of None is the scheme's usual one."""

    exact: frozenset[tuple[str, int | None]]
    below: tuple[tuple[str, int | None], ...]
    """Of `*.example.com`: `.example.com`."""

    @classmethod
    def of(cls, entries: tuple[str, ...]) -> Self:
        """Entries of another form than the configuration allows list nothing."""
        exact: set[tuple[str, int | None]] = set()
        below: list[tuple[str, int | None]] = []
        for match in filter(None, map(_ENTRY.fullmatch, entries)):
            port = int(match["port"]) if match["port"] else None
            name = host_name(match["host"])
            if name is None:
                continue
            if match["wildcard"]:
                below.append((f".{name}", port))
            else:
                exact.add((name, port))
        return cls(frozenset(exact), tuple(below))

    def checked(self, url: str, param: str) -> URL:
        """The URL to connect to. Raises `InvalidRequest` for what is none, `UnsupportedOperation` for other hosts."""
        match = _URL.fullmatch(url) if len(url) <= limits.media_url_chars_max else None
        name = None if match is None else host_name(match["host"])
        if match is None or name is None:
            raise InvalidRequest(f"{param}: expected a URL such as https://images.example/a.png", param=param)
        scheme = match["scheme"].lower()
        port = int(match["port"] or _USUAL_PORTS[scheme])
        parsed = _parsed(url)
        # Two readings of one URL that differ are how such checks are passed by.
        if parsed is None or (parsed.scheme, host_name(parsed.raw_host or ""), parsed.port) != (scheme, name, port):
            raise InvalidRequest(f"{param}: the URL can be read in more than one way", param=param)
        usual = port == _USUAL_PORTS[scheme]
        if not (self._lists(name, port) or (usual and self._lists(name, None))):
            shown = name[:100] if usual else f"{name[:100]}:{port}"
            raise UnsupportedOperation(f"{param}: nothing is fetched from the host {shown}", param=param, hint=HINT)
        return parsed

    def _lists(self, name: str, port: int | None) -> bool:
        if (name, port) in self.exact:
            return True
        return not _is_address(name) and any(name.endswith(suffix) and port == own for suffix, own in self.below)


def host_name(text: str) -> str | None:
    """A host in one form: lower case, an address as `ipaddress` writes it. None for numbers that are no address."""
    name = text.strip("[]").lower()
    if ":" not in name and not _LAST_LABEL_IS_NUMBER.fullmatch(name):
        return name
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None  # 127.1, 0x7f000001 and 2130706433 are 127.0.0.1 to some


def may_connect(name: str, address: str) -> bool:
    """Whether a listed name may stand for this address: a public one, or loopback for `localhost` itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if name == "localhost":
        return found.is_loopback
    if isinstance(found, ipaddress.IPv6Address):
        found = _ipv4_within(found) or found
    if isinstance(found, ipaddress.IPv6Address):
        ways_elsewhere = found.sixtofour is not None or found.teredo is not None
        return found in _UNICAST and found.is_global and not ways_elsewhere
    return found.is_global and not found.is_multicast and not found.is_reserved


def _ipv4_within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped (RFC 4291, 2.5.5.2) or a NAT64 one (RFC 6052, 2.1) leads to."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def _is_address(name: str) -> bool:
    return ":" in name or _LAST_LABEL_IS_NUMBER.fullmatch(name) is not None


def _parsed(url: str) -> URL | None:
    try:
        return URL(url)
    except ValueError:
        return None
