"""The guard on the wire: bytes as an attacker, a web page or a broken client would send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.support.http_front import CHAT, JSON_TYPE, Served, served

from llmvisor import limits
from llmvisor.errors import NotFound
from llmvisor.http.guard import Guard
from llmvisor.http.server import GUARD, guard
from llmvisor.http.settings import HttpSettings

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


def post(*headers: str, target: str = CHAT, body: bytes = BODY) -> bytes:
    """A POST whose headers are just these, `Connection` and `Content-Length` beside."""
    lines = [f"POST {target} HTTP/1.1", *headers, "Connection: close", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parsed(answer: bytes) -> tuple[int, str]:
    """Status, and the error's code (empty for none)."""
    head, _, body = answer.partition(b"\r\n\r\n")
    value = json.loads(body)
    return int(head.split()[1]), value.get("error", {}).get("code", "")


JSON = "Content-Type: application/json"
HOST = "Host: 127.0.0.1"

REQUESTS: list[tuple[str, bytes, int, str]] = [
    ("loopback address", post(HOST, JSON), 200, ""),
    ("loopback with port", post("Host: 127.0.0.1:9", JSON), 200, ""),
    ("localhost", post("Host: localhost", JSON), 200, ""),
    ("loopback v6", post("Host: [::1]:8000", JSON), 200, ""),
    ("absolute form that agrees", post(HOST, JSON, target=f"http://127.0.0.1{CHAT}"), 200, ""),
    ("rebound name", post("Host: evil.example", JSON), 403, "host_not_allowed"),
    ("look-alike", post("Host: 127.0.0.1.evil", JSON), 403, "host_not_allowed"),
    ("internal name", post("Host: x.internal", JSON), 403, "host_not_allowed"),
    ("unspecified", post("Host: 0.0.0.0", JSON), 403, "host_not_allowed"),
    ("userinfo", post("Host: 127.0.0.1@evil", JSON), 403, "host_not_allowed"),
    ("absolute form of another host", post(HOST, JSON, target=f"http://evil{CHAT}"), 403, "host_not_allowed"),
    ("absolute form, other case", post(HOST, JSON, target=f"HTTP://evil{CHAT}"), 403, "host_not_allowed"),
    ("loopback in line, evil in header", post("Host: evil", JSON, target=f"http://127.0.0.1{CHAT}"), 403, ""),
    ("origin of a stranger", post(HOST, JSON, "Origin: http://evil.example"), 403, "origin_not_allowed"),
    ("null origin", post(HOST, JSON, "Origin: null"), 403, "origin_not_allowed"),
    ("two origins", post(HOST, JSON, "Origin: http://localhost", "Origin: http://evil"), 403, "origin_not_allowed"),
    ("loopback origin", post(HOST, JSON, "Origin: http://localhost:3000"), 200, ""),
    ("cross-site without origin", post(HOST, JSON, "Sec-Fetch-Site: cross-site"), 403, "origin_not_allowed"),
    ("same-site without origin", post(HOST, JSON, "Sec-Fetch-Site: same-site"), 403, "origin_not_allowed"),
    ("same-origin", post(HOST, JSON, "Sec-Fetch-Site: same-origin"), 200, ""),
    ("no content type", post(HOST), 415, "unsupported_media_type"),
    ("text/plain", post(HOST, "Content-Type: text/plain"), 415, "unsupported_media_type"),
    ("form", post(HOST, "Content-Type: application/x-www-form-urlencoded"), 415, "unsupported_media_type"),
    ("two content types", post(HOST, JSON, "Content-Type: text/plain"), 400, "invalid_value"),
    ("gzip", post(HOST, JSON, "Content-Encoding: gzip"), 415, "unsupported_media_type"),
    ("management over TCP", post(HOST, JSON, target="/jobs"), 404, "not_found"),
    ("management, encoded", post(HOST, JSON, target="/%6aobs"), 404, "not_found"),
    ("management, wrong method", post(HOST, JSON, target="/llm/status"), 404, "not_found"),
    ("shutdown over TCP", post(HOST, JSON, target="/shutdown"), 404, "not_found"),
    ("unknown path", post(HOST, JSON, target="/v2/nothing"), 404, "not_found"),
    ("wrong method", post(HOST, JSON, target="/health"), 405, "method_not_allowed"),
]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"), [row[1:] for row in REQUESTS], ids=[r[0] for r in REQUESTS]
)
async def test_request_is_answered_or_refused(front: Served, request_bytes: bytes, status: int, code: str) -> None:
    """Each row: what goes over the wire, and the status and code that come back."""
    found = parsed(await front.raw(request_bytes))
    assert found[0] == status
    if code:
        assert found[1] == code
    assert len(front.service.generations) == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n folded: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nA: \x00\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (limits.header_bytes_max + 10) + b"\r\n\r\n",
        b"GET /" + b"x" * (limits.header_bytes_max + 10) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * (limits.header_lines_max + 1) + b"\r\n",
    ],
    ids=lambda request: repr(request[:70])[:90],
)
async def test_broken_http_is_refused_as_json_and_the_front_goes_on(front: Served, request_bytes: bytes) -> None:
    """No Host, ambiguous lengths, folded or oversized headers, no HTTP at all: a JSON error, and others are served."""
    answer = await front.raw(request_bytes + b"")
    status, _ = parsed(answer)
    assert status in {400, 403, 405}
    assert b"application/json" in answer
    assert (await front.chat()).status == 200


async def test_strangers_are_refused_before_their_body_is_read(front: Served) -> None:
    """A megabyte is announced and never sent; the refusal comes all the same."""
    head = post(HOST, JSON, "Origin: http://evil.example", body=b"").replace(b"Length: 0", b"Length: 1000000")
    reader, writer = await front.connect()
    writer.write(head)
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    writer.close()
    assert b" 403 " in answer.splitlines()[0]


async def test_unix_socket_asks_neither_host_nor_origin(front: Served) -> None:
    """No browser reaches it: any Host passes, and a POST without a body needs no content type."""
    headers = {"Host": "anything", "Origin": "http://evil.example"}
    assert (await front.manage("GET", "/llm/status", headers=headers)).status == 200
    assert (await front.manage("POST", "/shutdown")).status == 202
    refused = await front.manage("POST", CHAT, data=BODY, headers={"Content-Type": "text/plain"})
    assert refused.status == 415


@pytest.mark.parametrize(
    "path",
    ["/llm/status", "/llm/models", "/llm/runtimes/smol", "/jobs", "/logs", "/events", "/config", "/%6clm/status"],
)
async def test_management_is_absent_from_tcp(front: Served, path: str) -> None:
    """Over TCP there is no such path, whatever the method and however it is spelled."""
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        async with front.tcp.request(method, front.url + path, headers=JSON_TYPE) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "not_found"


async def test_no_route_changes_anything_on_get(front: Served) -> None:
    """Every GET of every path leaves jobs, generations and the daemon as they are."""
    for path in (
        "/jobs",
        "/llm/models",
        "/llm/runtimes",
        "/config",
        "/logs",
        "/llm/status",
        "/shutdown",
        "/jobs/x/cancel",
    ):
        await front.manage("GET", path)
    assert front.control.submitted == []
    assert front.control.shutdowns == 0
    assert front.service.generations == []


async def test_preflight_is_answered_for_allowed_origins_alone(front: Served) -> None:
    """A loopback page may send JSON with its headers; a stranger's preflight is 403; `*` is not used with loopback."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
    async with front.tcp.options(front.url + CHAT, headers={"Origin": "http://localhost:3000", **asked}) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert answer.headers["Access-Control-Allow-Headers"] == "content-type,x-stainless-os"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Origin" in answer.headers["Vary"]
    async with front.tcp.options(front.url + CHAT, headers={"Origin": "http://evil.example", **asked}) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_answers_to_pages_carry_cors_headers_also_streams_and_errors(front: Served) -> None:
    """A page can read a stream, an error, and our own headers."""
    headers = {"Origin": "http://127.0.0.1:5173"}
    body = json.loads(BODY)
    for fields, status in (({}, 200), ({"stream": True}, 200), ({"temperature": 9}, 400)):
        answer = await front.post(CHAT, {**body, **fields}, headers=headers)
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == headers["Origin"]
        assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Origin" not in (await front.post(CHAT, body)).headers


async def test_star_is_one_setting_without_credentials(tmp_path: Path) -> None:
    """`*` lets every page in, and never with credentials."""
    async with served(tmp_path, settings=HttpSettings(cors_origins=("*",), handler_cleanup_seconds=0.2)) as front:
        answer = await front.post(CHAT, json.loads(BODY), headers={"Origin": "https://app.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_request_whose_client_has_gone_is_not_taken_for_the_owners() -> None:
    """A page that sends and hangs up at once must not pass as the Unix socket: what cannot be told is refused."""
    reached: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response()

    app = web.Application()
    app[GUARD] = Guard.of(HttpSettings())
    gone = make_mocked_request("POST", "/shutdown", headers={"Host": "127.0.0.1"}, app=app)
    gone.protocol.transport = None
    with pytest.raises(ConnectionResetError):
        await guard(gone, handler)
    unknown = make_mocked_request("POST", "/shutdown", headers={"Host": "127.0.0.1"}, app=app)
    assert unknown.transport is not None
    unknown.transport.get_extra_info = lambda name, default=None: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(NotFound):
        await guard(unknown, handler)
    assert reached == []


async def test_pages_that_hang_up_at_once_change_nothing(front: Served) -> None:
    """A hundred requests to stop the daemon, each cut off as soon as it is sent."""
    for _ in range(100):
        _, writer = await front.connect()
        writer.write(post("Host: evil.example", "Content-Type: text/plain", target="/shutdown"))
        writer.transport.abort() if writer.transport.get_write_buffer_size() == 0 else writer.close()
    assert (await front.chat()).status == 200
    assert front.control.shutdowns == 0
