"""The pipes between daemon and worker: whole frames in order, no wait, no loss, bounded memory."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.polling import eventually
from tests.support.workers import start

from llmvisor import limits
from llmvisor.supervision.workers.channel import Channel
from llmvisor_runtimes.framing import COMMAND_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Cancel, Command, Detokenize, Hello, Report, Text

pytestmark = [pytest.mark.both_loops, pytest.mark.usefixtures("leak_check")]

HELLO = Hello(PROTOCOL_VERSION, "mock", "1", 1)


class Peer:
    """A channel, the other ends of its pipes, and what the channel reported."""

    def __init__(self) -> None:
        self.command_read, command_write = os.pipe()
        report_read, self.report_write = os.pipe()
        for fd in (self.command_read, command_write, report_read, self.report_write):
            os.set_blocking(fd, False)
        self.reports: list[Report] = []
        self.violations: list[str] = []
        self.eofs = 0
        self.close_at_report = False
        self._reader = FrameReader(COMMAND_DECODER)
        self.channel = Channel(
            command_fd=command_write,
            report_fd=report_read,
            on_report=self.hear,
            on_violation=self.violations.append,
            on_eof=self.count_eof,
        )

    def hear(self, report: Report) -> None:
        self.reports.append(report)
        if self.close_at_report:
            self.channel.close()

    def count_eof(self) -> None:
        self.eofs += 1

    def write(self, *data: bytes) -> None:
        whole = b"".join(data)
        assert os.write(self.report_write, whole) == len(whole)

    def read(self) -> list[Command]:
        """The commands that are in the pipe at the moment."""
        try:
            return list(self._reader.feed(os.read(self.command_read, 1024 * 1024)))
        except BlockingIOError:
            return []

    async def read_until(self, count: int) -> list[Command]:
        commands: list[Command] = []
        await eventually(lambda: commands.extend(self.read()) or len(commands) >= count, what=f"{count} commands")
        return commands

    def hang_up(self) -> None:
        os.close(self.report_write)
        self.report_write = -1

    def close(self) -> None:
        self.channel.close()
        for fd in (self.command_read, self.report_write):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
async def peer(leak_check: None) -> AsyncGenerator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


# ------------------------------------------------------------------------------------------------------------- reports


async def test_reports_come_in_order_however_they_are_cut(peer: Peer) -> None:
    """Frames that arrive byte by byte, or many in one read, are each reported once."""
    data = b"".join([encode(HELLO), *(encode(Text(number, "é" * number)) for number in range(20))])
    for byte in data[:200]:
        peer.write(bytes([byte]))
        await asyncio.sleep(0)
    peer.write(data[200:])
    await eventually(lambda: len(peer.reports) == 21)
    assert peer.reports == [HELLO, *(Text(number, "é" * number) for number in range(20))]
    assert peer.violations == []


async def test_report_of_many_reads_arrives_whole(peer: Peer) -> None:
    """A frame of megabytes takes many reads and is one report."""
    text = Text(1, "x" * 5_000_000)
    data = memoryview(encode(HELLO) + encode(text))
    while data:
        try:
            data = data[os.write(peer.report_write, data) :]
        except BlockingIOError:
            await asyncio.sleep(0)
    await eventually(lambda: len(peer.reports) == 2)
    assert peer.reports[1] == text


async def test_flood_of_reports_leaves_the_loop_its_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one wake-up handles is bounded: between any two reads everybody else gets a turn."""
    monkeypatch.setattr(limits, "report_read_bytes", 1024)
    peer = Peer()
    peer.write(encode(HELLO), encode(Text(1, "x")) * 2000)
    turns: list[int] = []
    while len(peer.reports) < 2001:
        await asyncio.sleep(0)
        turns.append(len(peer.reports))
    steps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(steps) <= 1024 // len(encode(Text(1, "x"))) + 1
    peer.close()


async def test_end_of_the_pipe_is_told_once_after_the_last_report(peer: Peer) -> None:
    """The worker's end of its pipe is its end."""
    peer.write(encode(HELLO), encode(Text(1, "last")))
    peer.hang_up()
    await eventually(lambda: peer.eofs)
    assert peer.reports == [HELLO, Text(1, "last")]
    assert (peer.eofs, peer.violations, peer.channel.cut) == (1, [], None)


async def test_end_inside_a_frame_is_remembered(peer: Peer) -> None:
    """A cut frame is a sign of a crash; the owner judges by the exit."""
    peer.write(encode(HELLO), encode(Text(1, "cut"))[:-1])
    peer.hang_up()
    await eventually(lambda: peer.eofs)
    assert peer.channel.cut is not None
    assert peer.reports == [HELLO]


async def test_violation_is_told_once_and_ends_the_reports(peer: Peer) -> None:
    """After bytes that are no frame nothing is read any more, and the pipe is closed."""
    peer.write(encode(HELLO), b"\xff" * 100)
    await eventually(lambda: peer.violations)
    assert (len(peer.violations), peer.eofs) == (1, 1)
    with pytest.raises(BrokenPipeError):
        peer.write(encode(Text(1, "x")))
    assert peer.reports == [HELLO]


async def test_closing_in_a_report_stops_the_rest_of_the_read(peer: Peer) -> None:
    """An owner that closes while it handles a report gets none that came with it."""
    peer.close_at_report = True
    peer.write(encode(HELLO), encode(Text(1, "x")) * 10)
    await eventually(lambda: peer.reports)
    for _ in range(5):
        await asyncio.sleep(0)
    assert peer.reports == [HELLO]
    assert (peer.eofs, peer.violations) == (0, [])


# ------------------------------------------------------------------------------------------------------------ commands


async def test_command_is_written_at_once(peer: Peer) -> None:
    """With room in the pipe a command does not even wait for the loop's next turn."""
    peer.channel.send(Cancel(7))
    assert peer.read() == [Cancel(7)]
    assert peer.channel.bytes_waiting == 0


async def test_commands_past_a_full_pipe_wait_and_keep_their_order(peer: Peer) -> None:
    """1. Far more is sent than the pipe holds. 2. The worker reads. Result: every command, once, in order."""
    commands = [Detokenize(number, [70_000] * 3000) for number in range(300)]
    for command in commands:
        peer.channel.send(command)
    assert peer.channel.bytes_waiting > 1_000_000
    assert await peer.read_until(300) == commands
    assert peer.channel.bytes_waiting == 0
    peer.channel.send(Cancel(7))
    assert peer.read() == [Cancel(7)]


async def test_many_small_commands_past_a_full_pipe_keep_their_order(peer: Peer) -> None:
    """More buffers wait than one write takes."""
    commands = [Cancel(number) for number in range(30_000)]
    for command in commands:
        peer.channel.send(command)
    assert peer.channel.bytes_waiting > 0
    assert await peer.read_until(30_000) == commands


async def test_finish_writes_all_that_waits_and_then_ends_the_pipe(peer: Peer) -> None:
    """The close frame is the last that a worker reads before the end of its pipe."""
    commands = [Detokenize(number, [70_000] * 3000) for number in range(100)]
    for command in commands:
        peer.channel.send(command)
    peer.channel.finish()
    peer.channel.send(Cancel(7))  # too late
    assert await peer.read_until(100) == commands
    await eventually(lambda: os.read(peer.command_read, 1) == b"")


async def test_send_to_a_closed_pipe_is_harmless(peer: Peer) -> None:
    """A worker that has gone takes no commands, and nobody is told twice."""
    os.close(peer.command_read)
    peer.command_read = -1
    for number in range(10):
        peer.channel.send(Cancel(number))
    assert peer.channel.bytes_waiting == 0
    assert (peer.violations, peer.eofs) == ([], 0)


async def test_pipe_that_breaks_while_commands_wait_is_harmless(peer: Peer) -> None:
    """1. Commands wait for a worker. 2. It dies. Result: they are forgotten."""
    for number in range(10):
        peer.channel.send(Detokenize(number, [70_000] * 30_000))
    assert peer.channel.bytes_waiting > 0
    os.close(peer.command_read)
    peer.command_read = -1
    await eventually(lambda: peer.channel.bytes_waiting == 0)
    assert peer.violations == []


async def test_commands_may_wait_up_to_the_bound_and_no_further(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound all waits; one byte past it the worker counts as one that does not read."""
    filler = Detokenize(1, [70_000] * 30_000)
    peer.channel.send(filler)
    peer.channel.send(filler)
    length = len(encode(Cancel(1)))
    monkeypatch.setattr(limits, "command_bytes_buffered_max", peer.channel.bytes_waiting + length)
    peer.channel.send(Cancel(1))
    assert peer.violations == []
    peer.channel.send(Cancel(1))
    assert [violation.partition(":")[0] for violation in peer.violations] == ["does not read its commands"]
    assert (peer.eofs, peer.channel.bytes_waiting) == (1, 0)


async def test_close_may_be_called_twice(peer: Peer) -> None:
    """Whoever closes need not know whether it was closed."""
    peer.channel.close()
    peer.channel.close()
    peer.channel.finish()
    peer.channel.send(Cancel(1))
    assert (peer.eofs, peer.violations) == (0, [])


async def test_send_to_a_dead_worker_is_harmless(tmp_path: Path) -> None:
    """A real worker that dies between two commands: neither loop raises, and its exit is told as ever."""
    recorded = await start(tmp_path, "exit 9")
    while not recorded.exits:
        recorded.send(Cancel(1))
        await asyncio.sleep(0.001)
    recorded.send(Cancel(2))
    assert (await recorded.exit()).code == 9


async def test_commands_are_answered_by_a_real_worker(tmp_path: Path) -> None:
    """A thousand commands, a thousand answers, in order."""
    recorded = await start(tmp_path, "serve")
    for number in range(1000):
        recorded.send(Detokenize(number, [number]))
    await eventually(lambda: len(recorded.reports) == 1001)
    assert recorded.reports[1:] == [Text(number, f"[{number}]") for number in range(1000)]
    recorded.stop("close")
    assert (await recorded.exit()).code == 0
