"""Models that are reconfigured at random while they are asked: every request is answered, and nothing is left over.

Workers are the test's own: each loads, fails to load, answers, goes or is killed when chance says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from tests.support.fake_worker import INFO, FakeClock, FakeWorker, generation, granted

from llmvisor.config.tree import ModelConfig, Restart
from llmvisor.models.gguf import GgufError
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.replacing import Replacing
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.scheduling.state import State
from llmvisor.supervision.setup import RuntimeSetup
from llmvisor.supervision.stream import GenerationStream
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    Delta,
    Done,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Step,
)

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
        self.greeted: list[FakeWorker] = []
        self.told: list[str | None] = []
        self.room = True
        self.configs = {NAME: config()}
        self.runtimes: dict[str, Runtime] = {}
        self.replacing = Replacing(self, lambda _, reason: self.told.append(reason))
        self.setup = RuntimeSetup(
            start_worker=self._start_worker,  # pyright: ignore[reportArgumentType]
            admit=lambda _: _granted(),
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
        return worker

    # ------------------------------------------------------------------------------------------------ what happens

    @property
    def runtime(self) -> Runtime:
        return self.runtimes[NAME]

    def get_on(self, worker: FakeWorker) -> None:
        """One worker does what it was told last: it goes, loads, or answers."""
        if worker.stops:
            self.workers.remove(worker)
            worker.exit()
            return
        if worker not in self.greeted:
            self.greeted.append(worker)
            worker.report(Hello(PROTOCOL_VERSION, "mock", "1", worker.pid))
        commands, worker.sent[:] = worker.sent[:], []
        for command in commands:
            if isinstance(command, Generate):
                deltas = [Delta(command.id, 0, "x", [1], finish="stop")]
                worker.report(Step(deltas, [Done(command.id, 1, 0, 1, 0.0, 0.0)]))
            elif isinstance(command, Load):
                bad = command.options.n_ctx in {BAD, UNREADABLE}
                worker.report(LoadFailed("it is bad", True) if bad else Loaded(INFO))

    def crash_idle(self) -> None:
        """The worker that serves is killed, and nobody was inside."""
        if self.runtime.state is State.READY and not self.runtime.in_flight:
            idle = [
                worker for worker in self.workers if worker in self.greeted and not worker.sent and not worker.stops
            ]
            if len(idle) == len(self.workers) == 1:
                self.workers.remove(idle[0])
                idle[0].exit(-9)

    def reconfigure(self) -> None:
        """Something else is wanted; what cannot be loaded only while there is something that could be."""
        wanted = self.replacing.wanted(NAME)
        choices = [1, 2, 3, wanted.n_ctx]
        if self.runtime.state is State.READY:
            choices += [BAD, UNREADABLE]
        self.replacing.change(NAME, config(self.chance.choice(choices), self.chance.randrange(1, 4)))


async def _granted() -> asyncio.Future[None]:
    return granted()


async def answer(stream: GenerationStream) -> str:
    async with stream:
        return "".join([delta.text async for batch in stream for delta in batch])


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def simulate(seed: int) -> None:
    fleet = SimulatedFleet(random.Random(seed))
    fleet.runtime.load()
    await settle()
    fleet.get_on(fleet.workers[0])
    assert fleet.runtime.state is State.READY
    answers: list[asyncio.Task[str]] = []
    for _ in range(60):
        happen(fleet, answers)
        if fleet.chance.random() < 0.7:
            await settle()
    wanted = fleet.replacing.wanted(NAME)
    await come_to_rest(fleet)
    assert [await asyncio.wait_for(each, 1) for each in answers] == ["x"] * len(answers)
    check(fleet, wanted)
    fleet.runtime.shutdown()
    await come_to_rest(fleet)
    assert fleet.runtime.state is State.CLOSED


def happen(fleet: SimulatedFleet, answers: list[asyncio.Task[str]]) -> None:
    """One thing, whichever it is."""
    match fleet.chance.randrange(10):
        case 0 | 1 | 2:
            answers.append(asyncio.create_task(answer(fleet.runtime.generate(generation()))))
        case 3 | 4:
            fleet.reconfigure()
        case 5:
            fleet.room = not fleet.room
        case 6:
            fleet.crash_idle()
        case _:
            if fleet.workers:
                fleet.get_on(fleet.chance.choice(fleet.workers))


async def come_to_rest(fleet: SimulatedFleet) -> None:
    for _ in range(60):
        await settle()
        for worker in fleet.workers[:]:
            fleet.get_on(worker)


def check(fleet: SimulatedFleet, wanted: ModelConfig) -> None:
    """What was wanted last holds, or the last thing before it that could be loaded; and nothing is left over."""
    assert fleet.replacing.names == []
    assert fleet.replacing.beside == {}
    assert fleet.replacing.configs == {}
    assert len(fleet.workers) <= 1
    assert fleet.runtime.key == NAME
    assert fleet.runtime.latest_config == fleet.configs[NAME]
    if wanted.n_ctx in {BAD, UNREADABLE}:
        assert fleet.configs[NAME].n_ctx not in {BAD, UNREADABLE}
        assert fleet.told[-1] is not None
    else:
        assert fleet.configs[NAME] == wanted


@pytest.mark.parametrize("seeds", [range(first, first + 50) for first in range(0, 400, 50)], ids=str)
async def test_every_request_is_answered_whatever_is_configured_meanwhile(seeds: range) -> None:
    """Hundreds of different courses; a failing one is named by its seed."""
    for seed in seeds:
        try:
            await simulate(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


async def test_crashes_of_the_worker_before_stay_known() -> None:
    """After a replacement side by side as after one in place."""
    fleet = SimulatedFleet(random.Random(1))
    fleet.runtime.load()
    await come_to_rest(fleet)
    fleet.crash_idle()
    await come_to_rest(fleet)
    before = fleet.runtime
    assert (before.state, before.status().restarts) == (State.READY, 1)
    fleet.replacing.change(NAME, config(n_ctx=2))
    await come_to_rest(fleet)
    assert fleet.runtime is not before
    assert fleet.runtime.status().restarts == 1
    assert len(fleet.runtime.postmortems.all()) == 1
