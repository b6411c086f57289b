"""What a worker writes to stdout and stderr, as lines of the log: bounded, and safe to print."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable, Iterable

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.supervision.handover import LogPipe

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")
"""Terminal escape sequences: CSI, OSC, and the short ones."""
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters but for the tab, and those that reorder or break a line on a screen."""
CUT_MARK = " … (cut)"


def printable(line: bytes) -> str:
    """A line as text that cannot pass for another line or steer a terminal.

    Of a line that was drawn over itself with carriage returns (progress bars), what a terminal would show last is kept.
    """
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class LineSplitter:
    """Cuts a byte stream into lines of at most `line_bytes_max`; the surplus of a longer one is dropped."""

    def __init__(self, *, line_bytes_max: int, rest: bytes = b"", skipping: bool = False) -> None:
        self._line_bytes_max = line_bytes_max
        self._rest = rest
        self._skipping = skipping

    @property
    def begun(self) -> tuple[bytes, bool]:
        """The line that is not whole yet, and whether what follows of it is dropped."""
        return self._rest, self._skipping

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without blank ones."""
        lines = data.split(b"\n")
        last = lines.pop()
        if lines:
            lines[0] = b"" if self._skipping else self._rest + lines[0]
            self._rest = b""
            self._skipping = False
        whole = [self._cut(line) for line in lines if line.strip()]
        if self._skipping:
            return whole
        self._rest += last
        if len(self._rest) > self._line_bytes_max:
            whole.append(self._cut(self._rest))
            self._rest = b""
            self._skipping = True
        return whole

    def close(self) -> list[bytes]:
        """The last line, where the stream ended without a line feed."""
        rest, self._rest = self._rest, b""
        return [self._cut(rest)] if rest.strip() else []

    def _cut(self, line: bytes) -> bytes:
        if len(line) <= self._line_bytes_max:
            return line
        return line[: self._line_bytes_max] + CUT_MARK.encode()


class LineAllowance:
    """How many lines may be logged: a bucket of `burst` that fills by `per_second`."""

    def __init__(self, *, burst: int, per_second: float, clock: Clock) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._left = float(burst)
        self._filled_at = clock.monotonic()

    def take(self, lines: int) -> int:
        """How many of these lines may pass now."""
        now = self._clock.monotonic()
        self._left = min(self._burst, self._left + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        granted = min(lines, int(self._left))
        self._left -= granted
        return granted


class LineLog:
    """Where the lines of one worker go: the last ones into a ring, and as many as are allowed to `on_line`."""

    def __init__(self, *, on_line: Callable[[str], None], clock: Clock, ring: Iterable[bytes] = ()) -> None:
        self._on_line = on_line
        self._ring: deque[bytes] = deque(ring, maxlen=limits.log_lines_per_worker)
        self._allowance = LineAllowance(
            burst=limits.log_lines_burst_max, per_second=limits.log_lines_per_second_max, clock=clock
        )
        self._left_out = 0

    @property
    def last_lines(self) -> list[str]:
        """The last `log_lines_per_worker` lines, left-out ones included."""
        return [printable(line) for line in self._ring]

    @property
    def ring(self) -> list[bytes]:
        """The same as they came."""
        return list(self._ring)

    def add(self, lines: list[bytes]) -> None:
        self._ring.extend(lines)
        granted = self._allowance.take(len(lines))
        if granted and self._left_out:
            self.tell_left_out()
        for line in lines[:granted]:
            self._on_line(printable(line))
        self._left_out += len(lines) - granted

    def tell_left_out(self) -> None:
        """Say how many lines were left out since this was last said."""
        if self._left_out:
            count, self._left_out = self._left_out, 0
            self._on_line(f"({count} lines left out: too many at once)")


class LogCapture:
    """Reads one log pipe to its end. Owns the descriptor."""

    def __init__(self, pipe: LogPipe, *, log: LineLog, on_eof: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = pipe.fd
        self._log = log
        self._on_eof = on_eof
        self._splitter = LineSplitter(line_bytes_max=limits.log_line_bytes_max, rest=pipe.rest, skipping=pipe.skipping)
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(pipe.fd, self._read)

    def hand_over(self) -> LogPipe | None:
        """The pipe as it stands; None where it has ended."""
        return None if self._fd is None else LogPipe(self._fd, *self._splitter.begun)

    def _read(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, limits.log_read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # as good as its end: these are only logs
            data = b""
        if not data:
            self.close()
            self._on_eof()
            return
        if len(data) == limits.log_read_bytes:
            # A flood: the writer may wait, the other models' streams may not.
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(limits.log_flood_pause_seconds, self._go_on)
        self._log.add(self._splitter.feed(data))

    def _go_on(self) -> None:
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Close the pipe, and log the line that it ended in. May be called twice."""
        if self._fd is None:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = None
        self._log.add(self._splitter.close())
