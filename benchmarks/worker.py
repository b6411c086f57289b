"""A mock worker spoken to directly over its pipes: what a request costs without the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncGenerator

from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Close,
    Command,
    Generate,
    Load,
    Loaded,
    ModelOptions,
    Sampling,
    Step,
)

START_SECONDS_MAX = 30.0


class DirectWorker:
    """One worker process, one request at a time."""

    def __init__(self, command_fd: int, report_fd: int) -> None:
        self._command_fd = command_fd
        self._report_fd = report_fd
        self._frames = FrameReader(REPORT_DECODER)
        self._loop = asyncio.get_running_loop()
        self._awaited: asyncio.Future[None] = self._loop.create_future()
        self._last_id = 0
        self._loop.add_reader(report_fd, self._read)

    async def load(self) -> None:
        self._send(Load(model="light", path="", options=ModelOptions(n_ctx=1_000_000, parallel=64)))
        async with asyncio.timeout(START_SECONDS_MAX):
            await self._awaited

    async def generate(self) -> None:
        """The request of `workload.chat_body`, to its end."""
        self._awaited = self._loop.create_future()
        self._last_id += 1
        prompt = ChatPrompt(messages=[ChatMessage(role="user", content="Say something.")])
        self._send(Generate(self._last_id, "direct", prompt, Sampling(), max_tokens=1))
        await self._awaited

    def close(self) -> None:
        self._send(Close())
        self._loop.remove_reader(self._report_fd)

    def _send(self, command: Command) -> None:
        os.write(self._command_fd, encode(command))

    def _read(self) -> None:
        for report in self._frames.feed(os.read(self._report_fd, 65_536)):
            ended = isinstance(report, Loaded) or (isinstance(report, Step) and report.done)
            if ended and not self._awaited.done():
                self._awaited.set_result(None)


@contextlib.asynccontextmanager
async def direct_worker() -> AsyncGenerator[DirectWorker]:
    """A mock worker that is loaded."""
    worker_reads, command_fd = os.pipe()
    report_fd, worker_writes = os.pipe()
    argv = [sys.executable, "-P", "-m", "llmvisor_runtimes", "mock", "--nonce", "bench"]
    argv += ["--read-fd", str(worker_reads), "--write-fd", str(worker_writes), "--parent-pid", str(os.getpid())]
    process = subprocess.Popen(argv, pass_fds=(worker_reads, worker_writes), stdin=subprocess.DEVNULL)
    os.close(worker_reads)
    os.close(worker_writes)
    try:
        worker = DirectWorker(command_fd, report_fd)
        await worker.load()
        yield worker
        worker.close()
    finally:
        os.close(command_fd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        os.close(report_fd)
