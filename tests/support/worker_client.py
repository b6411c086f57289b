"""Starts one worker as the daemon does and speaks frames with it, synchronously."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import (
    Command,
    Delta,
    Done,
    Failed,
    Generate,
    Hello,
    Load,
    Loaded,
    ModelOptions,
    Report,
    Sampling,
    Step,
    TextPrompt,
)

DEADLINE_SECONDS = 20.0
R = TypeVar("R")
GREEDY = Sampling(temperature=0)


class WorkerEnded(Exception):
    """The worker closed its report pipe."""


class Reply(msgspec.Struct):
    """Everything that came for one request."""

    deltas: list[Delta] = []
    done: Done | None = None
    failed: Failed | None = None

    def text(self, index: int = 0) -> str:
        """The text of one choice."""
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def tokens(self, index: int = 0) -> list[int]:
        """The token ids of one choice."""
        return [token for delta in self.deltas if delta.index == index for token in delta.tokens]

    def finish(self, index: int = 0) -> str | None:
        """How one choice ended."""
        return next((delta.finish for delta in self.deltas if delta.index == index and delta.finish), None)


def load_of(*, parallel: int = 4, **options: object) -> Load:
    """A `Load` of the mock with these options of its own (`MockOptions`)."""
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in options.items()}
    return Load("test", "", ModelOptions(parallel=parallel, options=raw))


def text_request(id: int, text: str, **fields: object) -> Generate:
    """A greedy request."""
    return msgspec.structs.replace(Generate(id, f"req-{id}", TextPrompt(text), GREEDY), **fields)


class Worker:
    """One worker process. Leave its `with` block and it is gone, with its group."""

    def __init__(
        self,
        backend: str = "mock",
        *,
        extra: Iterable[str] = (),
        env: dict[str, str] | None = None,
        program: str | None = None,
    ) -> None:
        """`extra` are further arguments, `env` further variables, `program` is Python to run instead of the module."""
        command_read, self._command_fd = os.pipe()
        self.report_fd, report_write = os.pipe()
        self.inherited_fds = (command_read, report_write)
        """The worker's ends of the two pipes, by its own numbers."""
        argv = [
            *(sys.executable, "-P"),
            *(("-m", "llmvisor_runtimes") if program is None else ("-c", program)),
            backend,
            *("--read-fd", str(command_read), "--write-fd", str(report_write)),
            *("--parent-pid", str(os.getpid()), "--nonce", os.urandom(8).hex()),
            *extra,
        ]
        # A file and no pipe: nobody has to read along.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=self.inherited_fds,
            start_new_session=True,
            env=None if env is None else {**os.environ, **env},
        )
        os.close(command_read)
        os.close(report_write)
        self._reader = FrameReader(REPORT_DECODER)
        self._pending: list[Report] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close_commands()
        self.close_reports()
        self._log.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, *commands: Command) -> None:
        """Write commands in one go."""
        self.write(b"".join(encode(command) for command in commands))

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        while data:
            data = data[os.write(self._command_fd, data) :]

    def close_commands(self) -> None:
        """End the command pipe, as the daemon's death does."""
        if self._command_fd >= 0:
            os.close(self._command_fd)
            self._command_fd = -1

    def close_reports(self) -> None:
        """Read no more."""
        if self.report_fd >= 0:
            os.close(self.report_fd)
            self.report_fd = -1

    def receive(self, seconds: float = DEADLINE_SECONDS) -> Report:
        """The next report. Raises `WorkerEnded` at the end, TimeoutError after the deadline."""
        deadline = time.monotonic() + seconds
        while not self._pending:
            ready, _, _ = select.select([self.report_fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no report within {seconds} s")
            data = os.read(self.report_fd, 1024 * 1024)
            if not data:
                self._reader.close()
                raise WorkerEnded
            self._pending.extend(self._reader.feed(data))
        return self._pending.pop(0)

    def receive_until(self, kind: type[R], seconds: float = DEADLINE_SECONDS) -> R:
        """The next report of a kind; others before it are dropped."""
        deadline = time.monotonic() + seconds
        while not isinstance(report := self.receive(max(0.0, deadline - time.monotonic())), kind):
            pass
        return report

    def load(self, *, parallel: int = 4, **options: object) -> Loaded:
        """Take the hello, load the mock, and wait until it is there."""
        assert isinstance(self.receive(), Hello)
        self.send(load_of(parallel=parallel, **options))
        return self.receive_until(Loaded)

    def generate(self, *requests: Generate) -> dict[int, Reply]:
        """Send requests and collect everything for them until each has ended."""
        self.send(*requests)
        return self.collect([request.id for request in requests])

    def collect(self, ids: Iterable[int], seconds: float = DEADLINE_SECONDS) -> dict[int, Reply]:
        """Everything for these requests until each has ended."""
        replies = {request_id: Reply() for request_id in ids}
        deadline = time.monotonic() + seconds
        while any(reply.done is None and reply.failed is None for reply in replies.values()):
            report = self.receive(max(0.0, deadline - time.monotonic()))
            if isinstance(report, Step):
                for delta in report.deltas:
                    replies[delta.id].deltas.append(delta)
                for done in report.done:
                    replies[done.id].done = done
            elif isinstance(report, Failed):
                replies[report.id].failed = report
        return replies

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """The exit code, as `subprocess` gives it."""
        return self.process.wait(seconds)

    def log(self) -> str:
        """Everything on stdout and stderr so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")
