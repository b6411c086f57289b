"""A client that costs little, so that it is not what is measured: one socket, no parsing while the bytes come.

What arrived is stamped and kept; it is taken apart when everything is over.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable
from typing import cast

import msgspec

from benchmarks.figures import BenchmarkError

RESPONSE_SECONDS_MAX = 300.0
READS_KEPT_MIN = 8
"""Of any answer: it may be an error."""
TAIL_BYTES = 2048
"""Of a stream that is not kept: room for its last events."""
_END_OF_HEADERS = b"\r\n\r\n"
_END_OF_STREAM = b"[DONE]"


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


class StreamTrace(msgspec.Struct):
    """When the text of a stream arrived. Times are seconds of one monotonic clock."""

    sent: float
    arrivals: list[float]
    """One for each event that had text."""
    usage: Usage | None

    @property
    def first_seconds(self) -> float:
        """To the first text."""
        return self.arrivals[0] - self.sent

    @property
    def tokens(self) -> int:
        if self.usage is None:
            raise BenchmarkError("a stream ended without usage")
        return self.usage.completion_tokens


class Connection(asyncio.Protocol):
    """One keep-alive HTTP connection, one request at a time."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._received: list[tuple[float, bytes]] = []
        self._size = 0
        self._ended: Callable[[], bool] = bool
        self._answer: asyncio.Future[None] | None = None
        self._on_data: Callable[[], None] | None = None
        self.bytes_received = 0
        self._keep = True
        self._tail = b""

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        if self._keep or len(self._received) < READS_KEPT_MIN:
            self._received.append((time.perf_counter(), data))
        self._tail = self._tail[-TAIL_BYTES:] + data
        if self._on_data is not None:
            self._on_data()
        if self._answer is not None and not self._answer.done() and self._ended():
            self._answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchmarkError(f"the server closed the connection: {exc}"))

    # -- requests

    def request_bytes(self, path: str, body: bytes) -> bytes:
        """A POST, whole; to be made once and sent many times."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def exchange(self, request: bytes) -> bytes:
        """Send a request whose answer has a Content-Length; the answer's body. Raises `BenchmarkError`."""
        self._begin(self._whole_answer)
        self._write(request)
        await self._wait()
        head, _, body = b"".join(data for _, data in self._received).partition(_END_OF_HEADERS)
        _check_status(head, body)
        return body

    async def stream(self, request: bytes, *, on_data: Callable[[], None] | None = None) -> StreamTrace:
        """Send a request whose answer is an event stream, to its end. Raises `BenchmarkError`."""
        self._begin(self._whole_stream)
        self._on_data = on_data
        sent = time.perf_counter()
        self._write(request)
        await self._wait()
        return read_trace(sent, self._received)

    async def drain_stream(self, request: bytes) -> Usage:
        """As `stream`, keeping only the end: for many streams at full speed."""
        self._begin(self._whole_stream)
        self._keep = False
        self._write(request)
        await self._wait()
        self._keep = True
        head, _, body = b"".join(data for _, data in self._received).partition(_END_OF_HEADERS)
        _check_status(head, body)
        return last_usage(self._tail)

    async def cut_stream(self, request: bytes, until: asyncio.Event) -> StreamTrace:
        """Read a stream until the event, then leave. Raises `BenchmarkError` if it ends before."""
        self._begin(self._whole_stream)
        sent = time.perf_counter()
        self._write(request)
        waiter = asyncio.create_task(until.wait())
        assert self._answer is not None
        await asyncio.wait([waiter, self._answer], return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            waiter.cancel()
            self._answer.result()
            raise BenchmarkError("the stream ended before it was to be left")
        self.close()
        return read_trace(sent, self._received)

    def received_texts(self) -> int:
        """How many events the stream has brought so far; an estimate that parses nothing."""
        return sum(data.count(b"data: ") for _, data in self._received)

    def close(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.close()

    def _begin(self, ended: Callable[[], bool]) -> None:
        self._received = []
        self._tail = b""
        self._size = 0
        self._on_data = None
        self._ended = ended
        self._answer = asyncio.get_running_loop().create_future()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            raise BenchmarkError("the server closed the connection")
        self._transport.write(data)

    async def _wait(self) -> None:
        assert self._answer is not None
        async with asyncio.timeout(RESPONSE_SECONDS_MAX):
            await self._answer

    def _whole_answer(self) -> bool:
        if not self._size:
            data = b"".join(data for _, data in self._received)
            head, end, _ = data.partition(_END_OF_HEADERS)
            if not end:
                return False
            self._size = len(head) + len(end) + content_length(head)
        return sum(len(data) for _, data in self._received) >= self._size

    def _whole_stream(self) -> bool:
        if _END_OF_STREAM in self._tail:
            # The chunk that ends the body belongs to this answer, not to the next.
            return self._tail.endswith(b"0\r\n\r\n")
        # An error has a Content-Length, and no events.
        return b"Content-Length:" in self._tail and self._whole_answer()


async def connect(host: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(f"{host}:{port}"), host=host, port=port
    )
    return connection


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise BenchmarkError(f"an answer without a length: {head[:200]!r}")


def read_trace(sent: float, received: list[tuple[float, bytes]]) -> StreamTrace:
    """The events of a chunked answer, each with the time at which its last byte came."""
    raw = b"".join(data for _, data in received)
    head, _, chunked = raw.partition(_END_OF_HEADERS)
    _check_status(head, chunked)
    ends: list[int] = []
    total = 0
    for _, data in received:
        total += len(data)
        ends.append(total)
    body, offsets = _unchunk(chunked, len(head) + len(_END_OF_HEADERS))
    trace = StreamTrace(sent=sent, arrivals=[], usage=None)
    decoder = msgspec.json.Decoder(_Chunk)
    position = 0
    while (end := body.find(b"\n\n", position)) != -1:
        event = body[position:end]
        position = end + 2
        if not event.startswith(b"data: {"):
            continue
        chunk = decoder.decode(event[6:])
        trace.usage = chunk.usage or trace.usage
        if any(choice.text or (choice.delta and choice.delta.content) for choice in chunk.choices):
            trace.arrivals.append(received[bisect.bisect_left(ends, _raw_offset(offsets, end))][0])
    return trace


def last_usage(tail: bytes) -> Usage:
    """The usage in the last events of a stream."""
    start = tail.rfind(b'"usage":{')
    if start == -1:
        raise BenchmarkError(f"a stream ended without usage: {tail[-200:]!r}")
    event_start = tail.rfind(b"data: ", 0, start) + 6
    chunk = msgspec.json.decode(tail[event_start : tail.index(b"\n\n", start)], type=_Chunk)
    assert chunk.usage is not None
    return chunk.usage


def _unchunk(data: bytes, base: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body, and where each of its pieces began: (offset in the body, offset in what was received)."""
    pieces: list[bytes] = []
    offsets: list[tuple[int, int]] = []
    position, length = 0, 0
    while (line_end := data.find(b"\r\n", position)) != -1:
        size = int(data[position:line_end], 16)
        if not size:
            break
        start = line_end + 2
        offsets.append((length, base + start))
        pieces.append(data[start : start + size])
        length += size
        position = start + size + 2
    return b"".join(pieces), offsets


def _raw_offset(offsets: list[tuple[int, int]], body_offset: int) -> int:
    start, raw = offsets[bisect.bisect_right(offsets, body_offset, key=lambda pair: pair[0]) - 1]
    return raw + body_offset - start


def _check_status(head: bytes, body: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 200"):
        status = head.partition(b"\r\n")[0].decode()
        raise BenchmarkError(f"{status}: {body[:500].decode(errors='replace')}")
