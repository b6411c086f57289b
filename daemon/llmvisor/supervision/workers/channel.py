"""The two pipes that carry frames between the daemon and one worker.

Reads and writes go straight to the descriptors: at a hundred thousand tokens a second a stream transport's copies and
wake-ups are what would cost. Nothing here blocks and nothing here waits.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from llmvisor import limits
from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import Command, Hello, ProtocolViolation, Report


class Channel:
    """Sends commands, gives reports. Owns both descriptors.

    `on_violation` is called at most once, with what the worker did (`sent garbage: …`), and `on_eof` once no report can
    come any more, be it for that or because the worker closed its end. All three run on the loop, inside `send` too.
    """

    def __init__(
        self,
        *,
        command_fd: int,
        report_fd: int,
        on_report: Callable[[Report], None],
        on_violation: Callable[[str], None],
        on_eof: Callable[[], None],
        unread: bytes | None = None,
        unsent: bytes = b"",
    ) -> None:
        """`unread` and `unsent` are what an earlier owner had left: its worker has greeted already."""
        self._loop = asyncio.get_running_loop()
        self._command_fd: int | None = command_fd
        self._report_fd: int | None = report_fd
        self._on_report = on_report
        self._on_violation = on_violation
        self._on_eof = on_eof
        self._frames = FrameReader(REPORT_DECODER, unread or b"")
        self._greeted = unread is not None
        self._waiting: deque[memoryview] = deque()
        self._finishing = False
        self.bytes_waiting = 0
        """Of commands that the worker has not taken yet."""
        self.cut: str | None = None
        """Set where the worker's end closed inside a frame."""
        self._loop.add_reader(report_fd, self._read)
        if unsent:
            self._queue(memoryview(unsent))

    # ---------------------------------------------------------------------------------------------------- reports

    def _read(self) -> None:
        """One read for one wake-up, so that a worker that floods holds up nobody else."""
        assert self._report_fd is not None
        try:
            data = os.read(self._report_fd, limits.report_read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._violated(f"has a broken report pipe: {error.strerror}")
            return
        if not data:
            self._ended()
            return
        try:
            self._deliver(data)
        except ProtocolViolation as violation:
            self._violated(f"sent garbage: {violation}")

    def _deliver(self, data: bytes) -> None:
        for report in self._frames.feed(data):
            if (type(report) is Hello) is self._greeted:
                raise ProtocolViolation("a second hello" if self._greeted else "the first frame is no hello")
            self._greeted = True
            self._on_report(report)
            if self._report_fd is None:  # closed by what the report led to
                return

    def _ended(self) -> None:
        try:
            self._frames.close()
        except ProtocolViolation as violation:
            self.cut = str(violation)
        self._end_reports()

    def _violated(self, what: str) -> None:
        self._on_violation(what)
        self._end_reports()

    def _end_reports(self) -> None:
        if self._close_reports():
            self._on_eof()

    def _close_reports(self) -> bool:
        """Whether the pipe was open."""
        if self._report_fd is None:
            return False
        self._loop.remove_reader(self._report_fd)
        os.close(self._report_fd)
        self._report_fd = None
        return True

    # --------------------------------------------------------------------------------------------------- commands

    def send(self, command: Command) -> int:
        """Write a command, now or when the worker takes it; gives its bytes. A worker that has gone is no error.

        More than `command_bytes_buffered_max` waiting is a violation: such a worker does not read. Raises ValueError
        where the command is longer than a frame may be.
        """
        if self._command_fd is None or self._finishing:
            return 0
        data = encode(command)
        written = 0 if self._waiting else self._write_some([data])
        if written < len(data):
            self._queue(memoryview(data)[written:])
        return len(data)

    def finish(self) -> None:
        """Close the command pipe as soon as all that waits is written."""
        self._finishing = True
        if not self._waiting:
            self._close_commands()

    def _queue(self, data: memoryview) -> None:
        if self._command_fd is None:
            return
        if not self._waiting:
            self._loop.add_writer(self._command_fd, self._flush)
        self._waiting.append(data)
        self.bytes_waiting += len(data)
        if self.bytes_waiting > limits.command_bytes_buffered_max:
            waiting = self.bytes_waiting
            self._close_commands()
            self._violated(f"does not read its commands: {waiting} bytes wait")

    def _flush(self) -> None:
        written = self._write_some(list(islice(self._waiting, limits.command_buffers_per_write_max)))
        self.bytes_waiting -= written
        while written:
            head = self._waiting.popleft()
            if written < len(head):
                self._waiting.appendleft(head[written:])
                break
            written -= len(head)
        if not self._waiting and self._command_fd is not None:
            self._loop.remove_writer(self._command_fd)
            if self._finishing:
                self._close_commands()

    def _write_some(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Bytes that the pipe took; 0 where it is full, or has no reader any more."""
        assert self._command_fd is not None
        try:
            return os.writev(self._command_fd, buffers)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # EPIPE: the exit of the process tells the rest
            self._close_commands()
            return 0

    def _close_commands(self) -> None:
        self._waiting.clear()
        self.bytes_waiting = 0
        if self._command_fd is not None:
            self._loop.remove_writer(self._command_fd)
            os.close(self._command_fd)
            self._command_fd = None

    def hand_over(self) -> tuple[int, int, bytes, bytes] | None:
        """Both descriptors, and what was `unread` and `unsent`; None where a pipe has ended or is about to.

        Nothing may be read or sent after it.
        """
        if self._command_fd is None or self._report_fd is None or self._finishing or not self._greeted:
            return None
        return self._command_fd, self._report_fd, self._frames.rest, b"".join(self._waiting)

    def close(self) -> None:
        """Close both pipes at once; nothing is called any more. May be called twice."""
        self._close_commands()
        self._close_reports()
