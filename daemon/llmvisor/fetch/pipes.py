"""The fetch process's two pipes: the daemon's request and its end come in, progress and the last line go out."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Fetched, FetchFailure, FetchProgress, Found, Request, Unchanged

LastLine = Fetched | Unchanged | Found | FetchFailure


def read_request(fd: int) -> Request:
    """The first line. Raises `FetchProblem` (invalid) for one that is none."""
    line = bytearray()
    while b"\n" not in line:
        chunk = os.read(fd, 65536)
        line += chunk
        if not chunk or len(line) > limits.fetch_request_bytes_max:
            break
    try:
        request: Request = msgspec.json.decode(bytes(line).partition(b"\n")[0], type=Request)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise FetchProblem("invalid", f"no request came: {error}", hint="`llmctl install` starts this") from error
    return request


def wait_for_end(fd: int) -> None:
    """Comes back when the daemon is gone."""
    while os.read(fd, 4096):
        pass


class Reporter:
    """Writes lines, from any thread. Of progress that comes too fast, or that nobody reads, the latest is kept."""

    def __init__(self, fd: int, monotonic: Callable[[], float]) -> None:
        self._fd = fd
        self._monotonic = monotonic
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._latest: FetchProgress | None = None
        self._next_at = 0.0
        self._stages: set[str] = set()
        self._ended = False

    def progress(self, progress: FetchProgress) -> None:
        """Raises nothing: that the daemon is gone shows at stdin, and is nothing that a fetch has to see to."""
        with self._lock:
            self._latest = progress
            self._write_due()

    async def keep_up(self) -> None:
        """Write what was kept once its time has come: a fetch that stalls shows how far it is. Never ends."""
        while True:
            await asyncio.sleep(limits.fetch_progress_seconds)
            with self._lock:
                self._write_due()

    def end(self, line: LastLine) -> None:
        """The last line, and nothing after it. Raises OSError where the daemon is gone."""
        with self._lock:
            self._ended = True
            self._write(line)

    def _write_due(self) -> None:
        progress, now = self._latest, self._monotonic()
        if progress is None or self._ended or (now < self._next_at and progress.stage in self._stages):
            return
        with suppress(OSError):
            if not select.select((), (self._fd,), (), 0)[1]:
                return
            self._latest = None
            self._next_at = now + limits.fetch_progress_seconds
            self._stages.add(progress.stage)  # the first word of each goes out at once; small files go to and fro
            self._write(progress)

    def _write(self, line: FetchProgress | LastLine) -> None:
        data = memoryview(self._encoder.encode(line) + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]
