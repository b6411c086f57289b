"""A1: a page whose name was made to lead here still names itself in Host, and is refused on every kind of bind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.http_front import COMPLETIONS, served

from llmvisor.http.settings import HttpSettings

BODY = b'{"model": "smol", "prompt": "hi"}'
REBOUND = [
    "Host: evil.example",
    "Host: 127.0.0.1.evil",
    "Host: 127.0.0.1.nip.io",
    "Host: localhost.evil",
    "Host: x.internal",
    "Host: printer.local",
    "Host: 0.0.0.0",
    "Host: [::]",
    "Host: 10.0.0.7",
    "Host: 2130706433",
    "Host: 127.0.0.1@evil",
    "Host: 127.0.0.1\r\nHost: evil",
    "Host: ",
    "X-Forwarded-Host: 127.0.0.1",
]
OWN = ["Host: 127.0.0.1", "Host: 127.0.0.1:8000", "Host: localhost", "Host: LOCALHOST:1", "Host: [::1]:8000"]


def request(host: str, target: str = COMPLETIONS) -> bytes:
    head = f"POST {target} HTTP/1.1\r\n{host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])  # the address as configured; served on loopback
async def test_name_that_was_rebound_is_refused_on_every_bind(tmp_path: Path, bound: str) -> None:
    """Other servers skip this check where they are bound to all addresses: here it is always on."""
    async with served(tmp_path, settings=HttpSettings(host=bound, handler_cleanup_seconds=0.2)) as front:
        for host in REBOUND:
            answer = await front.raw(request(host))
            assert answer.split()[1] in {b"403", b"400"}, (host, answer[:200])
        assert front.service.generations == []
        for host in OWN:
            assert (await front.raw(request(host))).split()[1] == b"200", host


async def test_request_line_and_header_have_to_agree(tmp_path: Path) -> None:
    """In `POST http://evil/… HTTP/1.1` the line wins over Host: a check of the header alone would be passed."""
    async with served(tmp_path) as front:
        for scheme in ("http", "HTTP", "https", "ws"):
            answer = await front.raw(request("Host: 127.0.0.1", target=f"{scheme}://evil{COMPLETIONS}"))
            assert answer.split()[1] in {b"403", b"400"}, answer[:200]
        assert front.service.generations == []


async def test_name_that_is_listed_is_let_in(tmp_path: Path) -> None:
    """`server.allowed_hosts`, and nothing near it."""
    async with served(
        tmp_path, settings=HttpSettings(allowed_hosts=("box.lan",), handler_cleanup_seconds=0.2)
    ) as front:
        assert (await front.raw(request("Host: box.lan:8000"))).split()[1] == b"200"
        assert (await front.raw(request("Host: sub.box.lan"))).split()[1] == b"403"
        assert (await front.raw(request("Host: box.lan."))).split()[1] == b"403"
