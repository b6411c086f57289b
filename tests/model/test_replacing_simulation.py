"""Models that are reconfigured at random while they are asked: every request is answered, and nothing is left over.

Workers are the test's own: each finishes, loads, fails to load or crashes when chance says so. A worker that is told
another configuration than `good` ones cannot load it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from tests.support.fake_worker import INFO, FakeClock, FakeWorker, generation

from llmvisor.config.tree import ModelConfig, Restart
from llmvisor.models.gguf import GgufError
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.reaper import WorkerExit
from llmvisor.supervision.replacing import Replacing
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.spawn import WorkerSpec
from llmvisor.supervision.state import State
from llmvisor.supervision.stream import GenerationStream
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Delta, Done, Generate, Hello, Loaded, LoadFailed, Report, Step

NAME = "tiny"
BAD = 666
"""An `n_ctx` that no worker can load."""
UNREADABLE = 667
"""One whose file cannot be looked at."""


def config(n_ctx: int = 1, top_k: int = 1) -> ModelConfig:
    return ModelConfig(backend="mock", n_ctx=n_ctx, top_k=top_k, queue_limit=1000, restart=Restart(max=1000))


class SimulatedFleet:
    """One model, its workers, and memory for one or two of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.clock = FakeClock()
        self.workers: list[FakeWorker] = []
        self.told: list[str | None] = []
        self.room = True
        self.configs = {NAME: config()}
        self.runtimes: dict[str, Runtime] = {}
        self.replacing = Replacing(self, lambda _, reason: self.told.append(reason))
        self.setup = RuntimeSetup(
            start_worker=self._start_worker,  # pyright: ignore[reportArgumentType]
            admit=lambda _: _nothing(),
            file_signature=lambda _: 1,
            publish=lambda _: None,
            clock=self.clock,
            random=lambda: 0.0,
            cores=CoreShares(8, {}, lambda _model, _threads: None),
            state_dir="",
            python=lambda _: "python",
        )
        self.runtimes[NAME] = self.make(NAME, config(), key=NAME)

    def make(self, name: str, config: ModelConfig, *, key: str) -> Runtime:
        return Runtime(name, config, self.setup, key=key)

    async def inspect(self, key: str) -> None:
        await asyncio.sleep(0)
        if self.replacing.configs.get(key, config()).n_ctx == UNREADABLE:
            raise GgufError("no such file")

    def fits(self, key: str) -> bool:
        return self.room

    def exchange(self, runtime: Runtime, other: str) -> None:
        peer = next((each for each in self.replacing.beside.values() if each.key == other), None)
        if peer is not None:
            peer.key = runtime.key
        runtime.key = other

    def forget(self, key: str) -> None:
        assert key != NAME

    def replaced(self, name: str) -> None:
        pass

    async def _start_worker(
        self,
        spec: WorkerSpec,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
        on_exit: Callable[[WorkerExit], None],
    ) -> FakeWorker:
        worker = FakeWorker(on_report, on_exit)
        self.workers.append(worker)
        on_report(Hello(PROTOCOL_VERSION, "mock", "1", worker.pid))
        return worker

    # ------------------------------------------------------------------------------------------------ what happens

    def step_worker(self, worker: FakeWorker, *, crash: bool) -> None:
        """Let one worker get on: it loads, answers what it has, goes if it was told to."""
        if worker.stops or (crash and worker in self.workers):
            self.workers.remove(worker)
            worker.exit(0 if worker.stops else 1)
            return
        for command in worker.sent[:]:
            worker.sent.remove(command)
            if isinstance(command, Generate):
                number = len(command.prompts) if hasattr(command, "prompts") else 1
                assert number == 1
                worker.report(Step([Delta(command.id, 0, "x", [1], finish="stop")], [Done(command.id, 1, 1, 0, 0.0, 0.0)]))
            elif hasattr(command, "options"):
                bad = command.options.n_ctx == BAD
                worker.report(LoadFailed("it is bad", True) if bad else Loaded(INFO))


async def _nothing() -> None:
    pass


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)
