"""A11: requests that two parsers read differently, and those that cost a parser much, end with an error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.http_front import COMPLETIONS, Served, served

from llmvisor import limits

HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
INNER = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Smuggled: 1\r\n\r\n"
BODY = b'{"prompt": "hi"}'


def post(*headers: bytes, body: bytes = BODY, line: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return line + b"\r\n" + HEAD + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


CORPUS: dict[str, bytes] = {
    "CL.TE": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + INNER),
    "TE.CL": post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"5\r\nhello\r\n0\r\n\r\n" + INNER),
    "TE twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + INNER),
    "TE unknown": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "TE with a tab": post(b"Transfer-Encoding:\tchunked\x0b", body=b"0\r\n\r\n"),
    "TE gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "TE identity, chunked": post(b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n"),
    "CL twice, same": post(b"Content-Length: 16", b"Content-Length: 16"),
    "CL twice, other": post(b"Content-Length: 16", b"Content-Length: 0"),
    "CL list": post(b"Content-Length: 16, 16"),
    "CL plus": post(b"Content-Length: +16"),
    "CL minus": post(b"Content-Length: -1"),
    "CL hex": post(b"Content-Length: 0x10"),
    "CL underscore": post(b"Content-Length: 1_6"),
    "CL unicode": post("Content-Length: ١٦".encode()),
    "CL huge": post(b"Content-Length: " + b"9" * 400),
    "CL empty": post(b"Content-Length: "),
    "blank before the colon": post(b"Content-Length : 16"),
    "no colon": post(b"Content-Length 16"),
    "folded": post(b"X-A: b\r\n c", b"Content-Length: 16"),
    "null in a value": post(b"X-A: b\x00c", b"Content-Length: 16"),
    "bare CR": post(b"X-A: b\rContent-Length: 0", b"Content-Length: 16"),
    "name with a blank": post(b"X A: b", b"Content-Length: 16"),
    "name with a null": post(b"X\x00A: b", b"Content-Length: 16"),
    "chunk size plus": post(b"Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size minus": post(b"Transfer-Encoding: chunked", body=b"-1\r\nhello\r\n0\r\n\r\n"),
    "chunk size 0x": post(b"Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size huge": post(b"Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk without its end": post(b"Transfer-Encoding: chunked", body=b"5\r\nhelloX\r\n0\r\n\r\n"),
    "chunk extension, endless": post(b"Transfer-Encoding: chunked", body=b"5;" + b"a" * 100_000 + b"\r\nhello\r\n"),
    "version": post(b"Content-Length: 16", line=b"POST /v1/completions HTTP/1.11"),
    "version 3": post(b"Content-Length: 16", line=b"POST /v1/completions HTTP/3.0"),
    "no version": post(b"Content-Length: 16", line=b"POST /v1/completions"),
    "method": post(b"Content-Length: 16", line=b"P\x00ST /v1/completions HTTP/1.1"),
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "host twice": post(b"Host: evil", b"Content-Length: 16"),
    "header too long": post(b"X-A: " + b"a" * 100_000, b"Content-Length: 16"),
    "line too long": post(b"Content-Length: 16", line=b"POST /" + b"a" * 100_000 + b" HTTP/1.1"),
    "too many headers": post(*(b"X-%d: a" % number for number in range(limits.header_lines_max + 50))),
}


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


@pytest.mark.parametrize("name", CORPUS)
async def test_request_that_can_be_read_twice_is_refused(front: Served, name: str) -> None:
    """One answer, an error; the connection ends, and nothing of what follows is taken for a second request."""
    answer = await front.raw(CORPUS[name] + INNER)
    assert answer == b"" or answer.split()[1] in {
        b"400",
        b"403",
        b"404",
        b"405",
        b"411",
        b"413",
        b"415",
        b"431",
        b"501",
        b"505",
    }
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert b" 200 " not in answer
    assert front.service.generations == []
    assert (await front.post(COMPLETIONS, {"prompt": "hi"})).status == 200


async def test_body_of_get_is_no_second_request(front: Served) -> None:
    """What is announced as a body is read as one, also where a body makes no sense."""
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(INNER)
    answer = await front.raw(head + INNER)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert front.service.generations == []


def test_parser_is_a_version_without_known_holes() -> None:
    """aiohttp 3.14.3 has the fixes of 2026; the package asks for it, and it is what is installed."""
    assert tuple(int(part) for part in version("aiohttp").split(".")[:3]) >= (3, 14, 3)
    wanted = [line for line in requires("llmvisor") or [] if line.startswith("aiohttp")]
    assert any(">=3.14" in line.replace(" ", "") for line in wanted), wanted


def test_daemon_without_the_compiled_parser_does_not_start() -> None:
    """aiohttp's parser in Python is laxer: the daemon says so and ends."""
    daemon = Daemon({"models": {"mock": mock_model()}}, env={"AIOHTTP_NO_EXTENSIONS": "1"})
    try:
        daemon.spawn()
        assert daemon.wait() != 0
        assert "parser" in daemon.console()
    finally:
        daemon.__exit__(None, None, None)


def test_environment_cannot_loosen_the_parser() -> None:
    """Where the variable is empty the parser is the compiled one."""
    script = "from llmvisor.http.connections import check_parser; check_parser(); print('compiled')"
    env = {name: value for name, value in os.environ.items() if name != "AIOHTTP_NO_EXTENSIONS"}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    assert ended.stdout.strip() == "compiled"
