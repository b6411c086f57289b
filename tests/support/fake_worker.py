"""A runtime actor whose worker, clock and admission are the test's own: no process, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from tests.support.polling import eventually

from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.services.service import Generation, SamplingRequest
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    Command,
    Hello,
    Loaded,
    Memory,
    ModelInfo,
    Report,
    TextPrompt,
)

INFO = ModelInfo(
    architecture="fake",
    parameters=1,
    quantization="F32",
    context_length=64,
    n_ctx=64,
    slots=2,
    vocabulary=10,
    capabilities=["completions"],
    memory=Memory(),
    load_seconds=0.0,
    backend="mock",
    backend_version="1",
)


class FakeClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at)


class FakeWorker:
    """Keeps what it is sent; the test says what it reports and when it has gone."""

    pid = 4242
    is_stopped = False

    def __init__(self, report: Callable[[Report], None], exit: Callable[[WorkerExit], None]) -> None:
        self.report = report
        self.sent: list[Command] = []
        self.stops: list[str] = []
        self.reason: str | None = None
        self.has_gone = False
        self._exit = exit

    def send(self, command: Command) -> int:
        self.sent.append(command)
        return 1

    def stop(self, rung: str, reason: str) -> None:
        self.stops.append(rung)
        self.reason = self.reason or reason

    def load(self) -> None:
        self.report(Hello(PROTOCOL_VERSION, "mock", "1", self.pid))
        self.report(Loaded(INFO))

    def exit(self, code: int = 0, *, memory_ran_out: bool | None = None) -> None:
        """With this code, or by this signal where it is negative."""
        self.has_gone = True
        how = (code, None) if code >= 0 else (None, -code)
        self._exit(
            WorkerExit(
                *how,
                requested=bool(self.stops),
                violation=None,
                last_lines=[],
                reason=self.reason,
                memory_ran_out=memory_ran_out,
            )
        )


class FakeWorld:
    """What a runtime needs of the world, and a runtime in it."""

    def __init__(self, **settings: object) -> None:
        self.clock = FakeClock()
        self.workers: list[FakeWorker] = []
        self.published: list[RuntimeStatus] = []
        self.signature: object = 1
        self.admit: Callable[[str], Awaitable[None]] = self._admit
        self.memory: asyncio.Future[None] | None = None
        """That a load waits for once it is admitted; None = there is enough."""
        self.before_start: Callable[[], Awaitable[None]] | None = None
        config = ModelConfig(backend="mock", **settings)  # pyright: ignore[reportArgumentType]
        setup = RuntimeSetup(
            start_worker=self._start_worker,  # pyright: ignore[reportArgumentType]
            admit=self._memory,
            file_signature=lambda _: self.signature,
            publish=self.published.append,
            clock=self.clock,
            random=lambda: 1.0,
            cores=CoreShares(8, {"tiny": 8}, lambda _model, threads: self.runtime.set_threads(threads)),
            state_dir="",
            python=lambda _: "python",
        )
        self.runtime = Runtime("tiny", config, setup)

    async def worker(self, count: int = 1) -> FakeWorker:
        """The newest worker, once so many have been started."""
        for _ in range(20):
            if len(self.workers) >= count:
                break
            await asyncio.sleep(0)
        assert len(self.workers) == count
        return self.workers[-1]

    async def loaded(self) -> FakeWorker:
        """The first worker, with the model loaded."""
        self.runtime.load()
        worker = await self.worker()
        worker.load()
        return worker

    async def restarted(self) -> FakeWorker:
        """The worker after a crash, with the model loaded."""
        count = len(self.workers)
        self.clock.at += 60
        await eventually(lambda: len(self.workers) > count)
        self.workers[-1].load()
        return self.workers[-1]

    async def _admit(self, name: str) -> None:
        pass

    async def _memory(self, name: str) -> asyncio.Future[None]:
        await self.admit(name)
        return self.memory or granted()

    async def _start_worker(
        self,
        spec: WorkerSpec,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
        on_exit: Callable[[WorkerExit], None],
    ) -> FakeWorker:
        if self.before_start is not None:
            await self.before_start()
        worker = FakeWorker(on_report, on_exit)
        self.workers.append(worker)
        return worker


def granted() -> asyncio.Future[None]:
    """Memory that is there."""
    memory: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    memory.set_result(None)
    return memory


def generation(n: int = 1) -> Generation:
    return Generation(request_id="req_1", prompt=TextPrompt("hello"), sampling=SamplingRequest(), n=n)
