"""Streams over time: silence, slow and absent readers, failures on the way, the end of the daemon."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.support.fake_service import FakeService, Script
from tests.support.http_front import CHAT, COMPLETIONS, Answer, Served, served
from tests.support.leaks import come, held
from tests.support.polling import eventually

from llmvisor import errors
from llmvisor.http.settings import HttpSettings

MESSAGES: Any = [{"role": "user", "content": "hi"}]
SHORT = HttpSettings(heartbeat_seconds=0.2, write_stall_seconds_max=0.4, handler_cleanup_seconds=0.2)
ASKS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES}),
    (COMPLETIONS, {"prompt": "hi", "max_tokens": 100}),
    (COMPLETIONS, {"prompt": ["hi", "ho"], "max_tokens": 100}),
]


def request_bytes(path: str = CHAT, *, close: bool = False, **fields: Any) -> bytes:
    body = json.dumps({"messages": MESSAGES, "prompt": "hi", "stream": True, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "Connection: close\r\n" if close else ""
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_heartbeats_come_while_the_first_token_is_waited_for(tmp_path: Path) -> None:
    """A comment now and then keeps proxies from giving up; then the stream goes on as if nothing had been."""
    gate = asyncio.Event()
    service = FakeService(script=Script(gate=gate))
    async with served(tmp_path, service, settings=SHORT) as front:
        async with front.tcp.post(front.url + CHAT, json={"messages": MESSAGES, "stream": True}) as response:
            assert response.status == 200
            assert response.headers["X-LLMVISOR-Model"] == "light/smol"
            assert "X-LLMVISOR-Queue-Ms" not in response.headers  # not known yet
            for _ in range(2):
                assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5) == b": waiting\n\n"
            gate.set()
            rest = await response.read()
        events = Answer(200, response.headers, rest).events
        assert events[-1] == "[DONE]"
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "Hello world!"


async def test_heartbeats_come_between_tokens_too(tmp_path: Path) -> None:
    """Silence in the middle of an answer is filled as well."""
    gate = asyncio.Event()
    service = FakeService(script=Script(pieces=["a", "b"], pause=gate))
    async with (
        served(tmp_path, service, settings=SHORT) as front,
        front.tcp.post(front.url + CHAT, json={"messages": MESSAGES, "stream": True}) as response,
    ):
        read = b""
        while b": waiting\n\n" not in read:
            read += await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
        assert b'"content":"a"' in read
        assert b'"content":"b"' not in read
        gate.set()
        rest = await response.read()
        assert b'"content":"b"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")


async def test_fast_streams_have_no_heartbeats(tmp_path: Path) -> None:
    """Nothing but data comes where there is no silence."""
    async with served(tmp_path, FakeService(script=Script(pieces=["x"] * 500)), settings=SHORT) as front:
        assert b": waiting" not in (await front.chat(stream=True)).body


@pytest.mark.parametrize(("path", "body"), ASKS, ids=["chat", "completion", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_error_before_the_first_byte_has_its_status(
    tmp_path: Path, path: str, body: dict[str, Any], stream: bool
) -> None:
    """A stream that never began is an ordinary error answer, with Retry-After where that is known."""
    service = FakeService(script=Script(fail=errors.ModelLoading("still loading", retry_after_seconds=2.4)))
    async with served(tmp_path, service) as front:
        answer = await front.post(path, {**body, "stream": stream})
        assert (answer.status, answer.error["code"]) == (503, "model_loading")
        assert answer.headers["Retry-After"] == "3"
        await eventually(lambda: front.service.running == 0)


@pytest.mark.parametrize(("path", "body"), ASKS, ids=["chat", "completion", "completions"])
@pytest.mark.parametrize(
    ("failure", "code"),
    [(errors.RuntimeCrashed("died"), "runtime_crashed"), (ZeroDivisionError("secret"), "internal_error")],
    ids=["crash", "bug"],
)
async def test_error_inside_a_stream_is_an_event_and_the_end(
    tmp_path: Path, path: str, body: dict[str, Any], failure: Exception, code: str
) -> None:
    """What came, then the error in OpenAI's form, no [DONE], and the connection goes on."""
    async with served(tmp_path, FakeService(script=Script(fail=failure, fail_after=2))) as front:
        with capture_logs():
            answer = await front.post(path, {**body, "stream": True})
        assert answer.status == 200
        assert answer.events[-1]["error"]["code"] == code
        assert "[DONE]" not in answer.events
        assert b"secret" not in answer.body
        assert (await front.get("/livez")).status == 200


async def test_error_after_a_heartbeat_is_an_event(tmp_path: Path) -> None:
    """Once a heartbeat has begun the answer, its status is spent."""
    gate = asyncio.Event()
    service = FakeService(script=Script(gate=gate, fail=errors.ModelLoadFailed("no such file")))
    async with served(tmp_path, service, settings=SHORT) as front:
        async with front.tcp.post(front.url + CHAT, json={"messages": MESSAGES, "stream": True}) as response:
            await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5)
            gate.set()
            rest = await response.read()
        assert b'"code":"model_load_failed"' in rest
        assert b"[DONE]" not in rest


@pytest.mark.parametrize("finish", ["cancelled", None])
@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_was_cut_is_told(tmp_path: Path, finish: Any, stream: bool) -> None:
    """A choice that ended by cancelling, or not at all, never looks like a whole answer."""
    async with served(tmp_path, FakeService(script=Script(finish=finish))) as front:
        for path, body in ASKS:
            answer = await front.post(path, {**body, "stream": stream})
            error = answer.events[-1]["error"] if stream else answer.error
            assert error["code"] == "model_unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_generation_without_a_report_is_an_internal_error(tmp_path: Path, stream: bool) -> None:
    """Usage is never made up."""
    async with served(tmp_path, FakeService(script=Script(done=False))) as front:
        answer = await front.chat(stream=stream)
        error = answer.events[-1]["error"] if stream else answer.error
        assert error["code"] == "internal_error"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"prompt": ["a", "b", "c"]}], ids=repr)
async def test_client_that_leaves_cancels_its_generation(tmp_path: Path, path: str, fields: dict[str, Any]) -> None:
    """Before the first token, streaming or not, one prompt or several: nothing is generated for nobody."""
    service = FakeService(script=Script(gate=asyncio.Event()))
    async with served(tmp_path, service) as front:
        _, writer = await front.connect()
        writer.write(request_bytes(path, **fields))
        await eventually(lambda: service.running > 0)
        writer.transport.abort()
        await eventually(lambda: service.running == 0)
        assert service.cancelled


async def test_client_that_leaves_in_the_middle_cancels_its_generation(tmp_path: Path) -> None:
    """An endless answer ends with its reader, quietly."""
    service = FakeService(script=Script(endless=True))
    async with served(tmp_path, service) as front:
        with capture_logs() as lines:
            for _ in range(5):
                reader, writer = await front.connect()
                writer.write(request_bytes())
                await reader.readuntil(b"world")
                writer.close()
            await eventually(lambda: len(lines) == 5 and service.running == 0)
        assert len(service.cancelled) == 5
        # It is nobody's fault: one access line each, and no traceback.
        assert [(line["event"], line["log_level"], line["status"]) for line in lines] == [("request", "info", 499)] * 5
        service.script = Script()
        assert (await front.chat()).status == 200


async def read_nothing(front: Served, receive_bytes: int = 4096, request: bytes = b"") -> socket.socket:
    """A client that asks and then does not read; with the smallest buffer it can have."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", front.port))
    await loop.sock_sendall(client, request or request_bytes())
    return client


async def test_client_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    """A full socket that nobody empties ends the request; memory does not grow meanwhile."""
    service = FakeService(script=Script(endless=True, pieces=["x" * 1000]))
    async with served(tmp_path, service, settings=SHORT) as front:
        client = await read_nothing(front)
        try:
            await eventually(lambda: service.running == 1)
            await eventually(lambda: service.running == 0)
            assert service.cancelled
            # At a kilobyte and more each: the buffers of two sockets and a transport, not an endless answer.
            assert service.tokens_sent < 2_000
        finally:
            client.close()


@pytest.mark.parametrize("closing", [False, True])
async def test_client_that_does_not_read_a_whole_answer_is_cut_off(tmp_path: Path, closing: bool) -> None:
    """An answer that is no stream is not kept for ever either, whether its connection was to be kept or not."""
    service = FakeService(script=Script(pieces=["x" * 1000] * 3000))
    async with served(tmp_path, service, settings=SHORT) as front:
        before = held()
        client = await read_nothing(front, request=request_bytes(stream=False, close=closing))
        try:
            await eventually(lambda: service.generations)
            await eventually(lambda: service.running == 0)
            # The server's own end of the connection goes, the client's stays.
            await eventually(lambda: len(come(before)) == 1, what=f"held: {come(before)}")
        finally:
            client.close()


async def test_client_that_reads_slowly_is_kept(tmp_path: Path) -> None:
    """As long as something is taken now and then, a slow reader has its stream."""
    service = FakeService(script=Script(endless=True, pieces=["x" * 1000]))
    async with served(tmp_path, service, settings=SHORT) as front:
        client = await read_nothing(front, receive_bytes=256 * 1024)
        loop = asyncio.get_running_loop()
        try:
            begun = loop.time()
            # Three times as long as a client may take nothing at all.
            while loop.time() - begun < 3 * SHORT.write_stall_seconds_max:
                assert await loop.sock_recv(client, 64 * 1024)
                await asyncio.sleep(0.03)  # what is measured is a reader of this speed
            assert service.running == 1
            assert service.tokens_sent < 20_000  # it was held back to what the client took
        finally:
            client.close()
        await eventually(lambda: service.running == 0)


async def test_slow_readers_do_not_slow_others(tmp_path: Path) -> None:
    """Beside readers that take nothing, a chat is answered at once."""
    service = FakeService(script=Script(endless=True, pieces=["x" * 1000]), scripts={"plain": Script()})
    async with served(tmp_path, service) as front:
        clients = [await read_nothing(front) for _ in range(8)]
        try:
            await eventually(lambda: service.running == 8)
            answer = await asyncio.wait_for(front.chat(model="plain"), 5)
            assert answer.status == 200
        finally:
            for client in clients:
                client.close()
        await eventually(lambda: service.running == 0)


async def test_many_streams_at_once_keep_to_themselves(tmp_path: Path) -> None:
    """Sixty-four streams, each with its own text, id and order."""
    service = FakeService(script=Script(by_prompt=True, batch=3))
    async with served(tmp_path, service) as front:
        prompts = [" ".join(f"{number}.{word}" for word in range(50)) for number in range(64)]
        answers = await asyncio.gather(
            *(front.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 99, "stream": True}) for prompt in prompts)
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            text = "".join(event["choices"][0]["text"] for event in answer.events[:-1])
            assert text == prompt.replace(" ", "")
        assert len({answer.events[0]["id"] for answer in answers}) == 64


async def test_end_of_the_front_ends_streams_in_bounded_time(tmp_path: Path) -> None:
    """With a stream under way, closing takes about twice the bound for handlers, and cancels the generation."""
    service = FakeService(script=Script(endless=True))
    loop = asyncio.get_running_loop()
    async with served(tmp_path, service, settings=SHORT) as front:
        reader, writer = await front.connect()
        writer.write(request_bytes())
        await reader.readuntil(b"world")
        begun = loop.time()
    assert loop.time() - begun < 5
    await eventually(lambda: service.running == 0)
    writer.close()


async def test_streams_leave_nothing_behind(tmp_path: Path) -> None:
    """Answers, errors, heartbeats, clients that left and that stalled: no task and no descriptor remains."""
    async with served(tmp_path, settings=SHORT):
        pass  # libuv opens a spare descriptor with a loop's first listener, and keeps it
    before = held()
    service = FakeService(
        script=Script(endless=True, pieces=["x" * 1000]),
        scripts={"plain": Script(), "bge": Script(fail=errors.RuntimeCrashed("died"), fail_after=1)},
    )
    service.statuses = [msgspec.structs.replace(status, capabilities=[], type="llm") for status in service.statuses]
    async with served(tmp_path, service, settings=SHORT) as front:
        assert (await front.chat(model="plain", stream=True)).events[-1] == "[DONE]"
        assert "error" in (await front.chat(model="bge", stream=True)).events[-1]
        stalled = await read_nothing(front)
        _, writer = await front.connect()
        writer.write(request_bytes())
        await eventually(lambda: service.running == 2)
        writer.close()
        await eventually(lambda: service.running == 0)
        stalled.close()
    await eventually(lambda: not come(before), what=f"left behind: {come(before)}")
