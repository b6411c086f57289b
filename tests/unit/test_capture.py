"""Lines of a worker's log: cut, bounded, and harmless to read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.supervision.workers.capture import CUT_MARK, LineAllowance, LineLog, LineSplitter, printable


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        (b"tab\tstays", "tab\tstays"),
        (b"windows\r", "windows"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;new title\x07text", "text"),
        (b"\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"a\x1b[2J\x1b[Hb", "ab"),
        (b"a\x1bcb", "ab"),
        (b"cut escape\x1b", "cut escape"),
        (b"cut escape\x1b[12", "cut escape12"),
        (b"bell\x07 null\x00 back\x08", "bell null back"),
        (b" 10% |#   |\r 50% |##  |\r100% |####|", "100% |####|"),
        (b" 10%\r100%\r", "100%"),
        (b"bad utf-8 \xff\xfe", "bad utf-8 \ufffd\ufffd"),
        ("new\u2028line\u0085again".encode(), "newlineagain"),
        ("\u202egnp.exe".encode(), "gnp.exe"),
        ("Grüße 🦙".encode(), "Grüße 🦙"),
    ],
)
def test_line_is_printable(raw: bytes, shown: str) -> None:
    """Nothing in a line can pass for another line, steer a terminal or turn its text around."""
    assert printable(raw) == shown


@given(st.binary())
def test_line_is_printable_whatever_it_holds(raw: bytes) -> None:
    """No bytes at all give a control character."""
    assert all(sign.isprintable() or sign in "\t\ufffd" or ord(sign) > 0xA0 for sign in printable(raw))


@given(st.lists(st.binary(max_size=30)), st.data())
def test_splitter_gives_the_same_lines_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    """Where one read ends and the next begins is chance, and changes no line."""
    stream = b"\n".join(lines)
    splitter = LineSplitter(line_bytes_max=10)
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    found += splitter.close()
    whole = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    assert [line[:10] for line in found] == [line[:10] for line in whole if line[:10].strip() or len(line) <= 10]


@pytest.mark.parametrize(("length", "cut"), [(9, False), (10, False), (11, True), (1000, True)])
def test_line_is_cut_past_the_bound(length: int, cut: bool) -> None:
    """At the bound a line is whole, past it its beginning is kept and marked."""
    for line in (LineSplitter(line_bytes_max=10).feed(b"x" * length + b"\n")[0],):
        assert line == (b"x" * 10 + CUT_MARK.encode() if cut else b"x" * length)


def test_endless_line_is_told_once() -> None:
    """A line that never ends is told once, and what follows the line feed at last is the next."""
    splitter = LineSplitter(line_bytes_max=10)
    found = [line for _ in range(1000) for line in splitter.feed(b"x" * 1000)]
    assert found == [b"x" * 10 + CUT_MARK.encode()]
    assert splitter.feed(b"tail\nnext\n") == [b"next"]
    assert splitter.close() == []


def test_blank_lines_are_no_lines() -> None:
    """What shows nothing is not logged."""
    assert LineSplitter(line_bytes_max=10).feed(b"\n\n  \na\n\r\n") == [b"a"]


def test_last_line_without_a_line_feed_is_told_at_the_end() -> None:
    """The last words of a crash often lack their line feed."""
    splitter = LineSplitter(line_bytes_max=10)
    assert splitter.feed(b"a\nlast") == [b"a"]
    assert splitter.close() == [b"last"]
    assert splitter.close() == []


def test_allowance_gives_its_burst_and_then_its_rate() -> None:
    """A burst passes whole; after it lines pass at the rate, and an idle hour saves up no more than a burst."""
    clock = Clock()
    allowance = LineAllowance(burst=100, per_second=10, clock=clock)
    assert [allowance.take(60), allowance.take(60), allowance.take(60)] == [60, 40, 0]
    clock.seconds = 2.5
    assert [allowance.take(60), allowance.take(1)] == [25, 0]
    clock.seconds = 3600
    assert [allowance.take(99), allowance.take(99)] == [99, 1]


def test_log_says_how_many_lines_it_left_out_and_keeps_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A flood comes. 2. Later a line. Result: the burst, a count, the line; the last lines are all there."""
    monkeypatch.setattr(limits, "log_lines_burst_max", 3)
    monkeypatch.setattr(limits, "log_lines_per_second_max", 1)
    monkeypatch.setattr(limits, "log_lines_per_worker", 5)
    clock = Clock()
    lines: list[str] = []
    log = LineLog(on_line=lines.append, clock=clock)
    log.add([b"%d" % number for number in range(10)])
    assert log.last_lines == ["5", "6", "7", "8", "9"]
    clock.seconds = 1
    log.add([b"later"])
    assert lines == ["0", "1", "2", "(7 lines left out: too many at once)", "later"]
    log.add([b"again"])
    log.tell_left_out()
    log.tell_left_out()
    assert lines[5:] == ["(1 lines left out: too many at once)"]
    assert log.last_lines == ["7", "8", "9", "later", "again"]
