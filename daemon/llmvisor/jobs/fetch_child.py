"""One fetch process: its pipes, its lines, its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.log import get_logger
from llmvisor.supervision.handover import LogPipe
from llmvisor.supervision.workers.capture import LineLog, LineSplitter, LogCapture
from llmvisor.supervision.workers.reaper import ProcessGroup, Reaper, Rung

_log = get_logger(__name__)


class FetchChild:
    """A process that was started, with the daemon's ends of its pipes, which it owns."""

    def __init__(
        self, process: asyncio.subprocess.Process, stdin_fd: int, stdout_fd: int, stderr_fd: int, *, clock: Clock
    ) -> None:
        self.pid = process.pid
        self.on_end: Callable[[], None] | None = None
        self._stdin_fd: int | None = stdin_fd
        self._stdout_fd: int | None = stdout_fd
        self._splitter = LineSplitter(line_bytes_max=limits.fetch_line_bytes_max)
        self._lines: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._log = LineLog(on_line=lambda line: _log.info(line, source="fetch"), clock=clock)
        self._stderr_ended = asyncio.Event()
        self._stderr = LogCapture(LogPipe(stderr_fd), log=self._log, on_eof=self._stderr_ended.set)
        self._group = ProcessGroup(process.pid)
        self._reaper = Reaper(process, self._group, close_commands=self._close_stdin)
        self._reaped = asyncio.create_task(self._reaper.reap(), name=f"fetch process {process.pid}")
        asyncio.get_running_loop().add_reader(stdout_fd, self._read)

    def tell(self, line: bytes) -> None:
        """Write the request. It fits into the pipe, so nothing waits; a process that has gone is seen by its end."""
        assert len(line) < limits.fetch_read_bytes
        if self._stdin_fd is not None:
            with suppress(OSError):
                os.write(self._stdin_fd, line)

    async def lines(self) -> AsyncIterator[bytes]:
        """Every line of its stdout, until that ends."""
        while True:
            while self._lines:
                yield self._lines.popleft()
            if self._stdout_fd is None:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def stop(self, rung: Rung) -> None:
        """End it, from this rung of the kill ladder on (see `Reaper`), and hear no more of it. It never goes down."""
        self._close_stdout()
        self._reaper.stop(rung)

    async def ended(self) -> str:
        """Wait until it and all that it started are gone, and tell how it ended, without a subject."""
        try:
            code = await self._reaped
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.pipe_drain_seconds_max):
                    await self._stderr_ended.wait()
        finally:
            self._release()
        if self.on_end is not None and code is not None:
            self.on_end()
        return self._describe(code)

    def _describe(self, code: int | None) -> str:
        if code is None:
            return "could not be killed"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = next((line for line in reversed(self._log.last_lines) if line.strip()), "")
        return f"{how}: {said[: limits.last_words_chars_max]}" if said else how

    def _release(self) -> None:
        self._close_stdin()
        self._close_stdout()
        self._stderr.close()
        self._group.close()

    def _read(self) -> None:
        assert self._stdout_fd is not None
        try:
            data = os.read(self._stdout_fd, limits.fetch_read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._lines.extend(self._splitter.feed(data))
        else:
            self._close_stdout()
        self._arrived.set()

    def _close_stdin(self) -> None:
        if self._stdin_fd is not None:
            os.close(self._stdin_fd)
            self._stdin_fd = None

    def _close_stdout(self) -> None:
        if self._stdout_fd is not None:
            asyncio.get_running_loop().remove_reader(self._stdout_fd)
            os.close(self._stdout_fd)
            self._stdout_fd = None
            self._lines.extend(self._splitter.close())
            self._arrived.set()
