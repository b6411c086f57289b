"""What the benchmarks count with: the client that stamps events, ratios and their spread, the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from benchmarks import peers
from benchmarks.client import Connection, connect
from benchmarks.figures import BenchmarkError, Bound, Figure, alone, compare, json_line, percentile
from benchmarks.table import results_page, table

EVENTS = [
    b'data: {"choices":[{"index":0,"text":"one","finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"text":"","finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"two"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"details":{"cached_tokens":1}}}\n\n',
    b"data: [DONE]\n\n",
]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def server_saying(parts: Sequence[bytes]) -> AsyncGenerator[Connection]:
    """A connection to a server that answers every request with these bytes, one write each."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = await connect("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield connection
    finally:
        connection.close()
        server.close()
        await server.wait_closed()


async def test_stream_counts_the_events_that_have_text() -> None:
    """Empty texts, usage and the end are no tokens; the usage is kept; times only ever grow."""
    parts = [STREAM_HEAD, *(chunk(event) for event in EVENTS), b"0\r\n\r\n"]
    async with server_saying(parts) as connection:
        for _ in range(2):  # the connection is as good as new afterwards
            trace = await connection.stream(b"POST / HTTP/1.1\r\n\r\n")
            assert len(trace.arrivals) == 2
            assert trace.tokens == 2
            assert trace.sent <= trace.arrivals[0] <= trace.arrivals[1]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
async def test_stream_is_read_however_it_is_cut(size: int) -> None:
    """Wherever reads and chunks are cut, the same events come out."""
    body = b"".join(EVENTS)
    whole = STREAM_HEAD + b"".join(chunk(body[at : at + 11]) for at in range(0, len(body), 11)) + b"0\r\n\r\n"
    async with server_saying([whole[at : at + size] for at in range(0, len(whole), size)]) as connection:
        trace = await connection.stream(b"POST / HTTP/1.1\r\n\r\n")
    assert (len(trace.arrivals), trace.tokens) == (2, 2)


async def test_drained_stream_gives_its_usage() -> None:
    """A stream that is not kept still tells how many tokens came."""
    parts = [STREAM_HEAD, *(chunk(EVENTS[0]) for _ in range(500)), *(chunk(event) for event in EVENTS), b"0\r\n\r\n"]
    async with server_saying(parts) as connection:
        usage = await connection.drain_stream(b"POST / HTTP/1.1\r\n\r\n")
    assert usage.completion_tokens == 2


async def test_answer_is_read_to_its_length() -> None:
    """An answer with a Content-Length ends there, however it is cut."""
    parts = [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n", b"\r\n01234", b"56789"]
    async with server_saying(parts) as connection:
        assert await connection.exchange(b"POST / HTTP/1.1\r\n\r\n") == b"0123456789"


@pytest.mark.parametrize("method", ["exchange", "stream", "drain_stream"])
async def test_error_answer_is_an_error(method: str) -> None:
    """A server that refuses ends the measurement, with its own words."""
    async with server_saying([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull"]) as connection:
        with pytest.raises(BenchmarkError, match="503 Busy: full"):
            await getattr(connection, method)(b"POST / HTTP/1.1\r\n\r\n")


def test_ratio_is_the_median_of_the_rounds() -> None:
    """Each round has a ratio of its own, so a machine that slows down for a while slows both."""
    figure = compare("x", "ms", [(1, 2), (20, 40), (3, 4)], peer_name="peer", target=Bound("ratio", "≤", 0.5))
    assert (figure.ours, figure.peer, figure.ratio, figure.ratio_spread) == (3, 4, 0.5, (0.5, 0.75))
    assert figure.met is True
    assert compare("x", "ms", [(3, 4)], peer_name="peer", target=Bound("ratio", "≤", 0.7)).met is False


def test_value_without_a_peer_meets_its_own_bound() -> None:
    """A bound on the value itself needs no peer."""
    assert alone("x", "MB", [50, 61, 70], target=Bound("ours", "≤", 60)).met is False
    assert alone("x", "MB", [50, 59, 70], target=Bound("ours", "≤", 60)).met is True
    assert alone("x", "MB", [50]).met is None


def test_percentile_takes_the_value_at_the_share() -> None:
    """Of 100 values the 99th percentile is the highest but none."""
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (51, 100, 7)


def test_json_line_is_one_line_that_decodes() -> None:
    """Each figure is one JSON object with versions, ratio and spread."""
    figure = compare("x", "ms", [(1, 2)], peer_name="peer", notes={"a_ms": 1.23456789})
    line = json_line(figure)
    assert "\n" not in line
    decoded = msgspec.json.decode(line, type=Figure)
    assert decoded.notes == {"a_ms": 1.2346}
    assert decoded.versions["aiohttp"]


def test_table_and_page_show_every_figure() -> None:
    """The page has the date, the versions and one aligned line for each figure."""
    figures = [
        compare("decode", "tokens/s", [(100, 90)], peer_name="llama-server", target=Bound("ratio", "≥", 1.0)),
        alone("memory", "MB", [51.4], notes={"other_mb": 3.0}),
    ]
    lines = table(figures).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "decode", "tokens/s", "100", "llama-server", "90", "1.11", "1.11 to 1.11", "ratio ≥ 1", "yes",
    ]  # fmt: skip
    page = results_page(figures, datetime(2026, 3, 4, tzinfo=UTC))
    assert "2026-03-04" in page
    assert "aiohttp " in page
    assert "- memory: other_mb 3" in page


def test_peer_is_built_once_for_each_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of another version of llama.cpp, or one that was not finished, does not count."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not peers.is_built("1.0")
    peers.llama_server_path().parent.mkdir(parents=True)
    peers.llama_server_path().touch()
    assert not peers.is_built("1.0")
    (peers.cache_dir() / "version").write_text("1.0\n")
    assert peers.is_built("1.0")
    assert not peers.is_built("1.1")


def test_infinity_peer_counts_once_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that broke off has no list of versions, and one of another version is made anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peers.infinity_path().parent.mkdir(parents=True)
    peers.infinity_path().touch()
    assert peers.infinity_versions() == {}
    stamp = peers.infinity_path().parents[1] / "versions"
    stamp.write_text("infinity-emb==0.0.1\ntorch==2.0\n")
    assert peers.infinity_versions() == {}
    stamp.write_text(f"infinity-emb=={peers.INFINITY_VERSION}\ntorch==2.0+cpu\n")
    assert peers.infinity_versions() == {"infinity-emb": peers.INFINITY_VERSION, "torch": "2.0+cpu"}
