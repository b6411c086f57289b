"""Deadlines that are over while an answer is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.fake_service import FakeService, Script
from tests.support.http_front import CHAT, served

from llmvisor.http.settings import HttpSettings

BODY = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
REQUEST = (
    b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Timeout: 0.2\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(BODY), BODY)
)


async def test_stream_that_nobody_ends_in_time_is_cut_and_no_second_answer_follows(tmp_path: Path) -> None:
    """1. The stream has begun. 2. Its time is over, and nothing below ends it (its reader has stalled).

    Result: the connection ends without the last chunk, so that the client knows.
    """
    service = FakeService(script=Script(gate=asyncio.Event()))
    settings = HttpSettings(handler_cleanup_seconds=0.2, heartbeat_seconds=0.05)
    async with served(tmp_path, service, settings=settings) as front:
        answer = await front.raw(REQUEST)
        assert len(service.cancelled) == 1
    assert answer.startswith(b"HTTP/1.1 200")
    assert b": waiting" in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"0\r\n\r\n")
