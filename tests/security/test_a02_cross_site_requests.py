"""A2: no page of a stranger makes the daemon do anything, whatever a browser sends for it without asking."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from tests.support.http_front import COMPLETIONS, Served, served

from llmvisor.http.settings import HttpSettings

STRANGERS = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Origin": "http://127.0.0.1.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "chrome-extension://abc"},
    {"Origin": "http://0.0.0.0:8000"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
SIMPLE_TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


def routes(front: Served) -> Iterator[tuple[str, str]]:
    """Every method and path that the front answers, a name in the place of each pattern."""
    found = list(front.app.router.resources())
    assert len(found) > 30
    for resource in found:
        path = str(resource.canonical)
        for name in ("{id}", "{name}"):
            path = path.replace(name, "smol")
        for route in resource:
            if route.method not in {"HEAD", "OPTIONS"}:
                yield route.method, path


async def answer(front: Served, head: str, headers: dict[str, str], body: bytes = b"{}") -> tuple[int, bytes]:
    lines = [head, "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close"]
    lines += [f"Content-Length: {len(body)}"] if head.startswith(("POST", "PUT", "DELETE")) else []
    sent = "\r\n".join(lines).encode() + b"\r\n\r\n"
    found = await front.raw(sent + (body if b"Content-Length" in sent else b""))
    return int(found.split()[1]), found


@pytest.mark.parametrize("headers", STRANGERS, ids=str)
async def test_page_of_a_stranger_is_refused_on_every_path(front: Served, headers: dict[str, str]) -> None:
    """403 before anything is read or done, and no header that would let it read the answer."""
    for method, path in routes(front):
        typed = {**headers, "Content-Type": "application/json"}
        status, found = await answer(front, f"{method} {path} HTTP/1.1", typed)
        assert status == 403, (method, path, status)
        assert b"access-control-allow" not in found.lower()
    assert front.service.generations == []


async def test_preflight_of_a_stranger_is_refused(front: Served) -> None:
    """OPTIONS without an allowed Origin gets no permission."""
    for headers in STRANGERS:
        asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        status, found = await answer(front, f"OPTIONS {COMPLETIONS} HTTP/1.1", asked)
        assert status == 403
        assert b"access-control-allow" not in found.lower()


async def test_body_that_a_page_may_send_unasked_is_refused_on_every_path(front: Served) -> None:
    """A "simple" request brings its JSON as text or as a form: 415 on every path that takes one."""
    for method, path in routes(front):
        if method == "GET":
            continue
        for content_type in SIMPLE_TYPES:
            headers = {} if content_type is None else {"Content-Type": content_type}
            status, _ = await answer(front, f"{method} {path} HTTP/1.1", headers, b'{"prompt": "hi"}')
            assert status in {415, 404}, (method, path, content_type, status)
    assert front.service.generations == []


async def test_no_get_changes_anything(front: Served) -> None:
    """A link or an image on a page is a GET: over TCP and over the socket none of them does anything."""
    for method, path in routes(front):
        if method == "GET" and path not in {"/logs", "/events"} and not path.endswith("/events"):
            await answer(front, f"GET {path} HTTP/1.1", {})
            await front.manage("GET", path)
    assert front.service.generations == []
    control = front.control
    assert (control.submitted, control.shutdowns, control.restarts, control.job_list) == ([], 0, [], [])


async def test_star_gives_no_credentials_and_no_management(tmp_path: Path) -> None:
    """`cors_origins: ["*"]`: pages may read, without the browser's credentials, and manage nothing."""
    settings = HttpSettings(cors_origins=("*",), handler_cleanup_seconds=0.2)
    async with served(tmp_path, settings=settings) as front:
        status, found = await answer(front, "GET /v1/models HTTP/1.1", {"Origin": "http://evil.example"})
        assert status == 200
        assert b"access-control-allow-origin: *" in found.lower()
        assert b"credentials" not in found.lower()
        for path in ("/shutdown", "/jobs", "/config", "/llm/status", "/logs"):
            assert (await answer(front, f"GET {path} HTTP/1.1", {"Origin": "http://evil.example"}))[0] in {403, 404}
