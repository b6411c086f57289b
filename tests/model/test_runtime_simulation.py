"""One model's runtime whole, with its streams and their readers, under seeded troubles on a virtual clock.

The runtime is the real one; the worker is played here: it writes numbered tokens, goes on behind what it is told was
sent, and knows which commands make sense. Whatever the order of crashes, hangs, unloads, slow readers and clients that
leave: each stream ends once, its tokens have no gap and no repeat, and the worker is told of no request that it does
not have.

The same seed gives the same run: `LLMVISOR_SIMULATION_SEEDS=1000-2000` runs others than those of every day.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable

import pytest
from tests.support.fake_worker import INFO, FakeWorker, FakeWorld

from llmvisor import limits
from llmvisor.config.tree import Restart
from llmvisor.errors import LlmvisorError, ShuttingDown
from llmvisor.services.service import EmbeddingRequest, Generation, SamplingRequest, Terms
from llmvisor.supervision.scheduling.state import HAS_WORKER, State
from llmvisor.supervision.stream import GenerationStream
from llmvisor_runtimes.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Command,
    Delta,
    Done,
    Embed,
    Embedding,
    Embeddings,
    Generate,
    Hello,
    Load,
    Loaded,
    Pause,
    Resume,
    Resumed,
    Step,
    TextPrompt,
    Tick,
)

FIRST, LAST = map(int, os.environ.get("LLMVISOR_SIMULATION_SEEDS", "0-200").split("-"))
SEEDS_EACH = 100
STEPS = 150
STEPS_MAX = 20_000
PAUSE_DELTAS = 5
PROMPT_TOKENS = 4
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that slow readers matter within a few tokens."""
    monkeypatch.setattr(limits, "stream_pause_deltas", PAUSE_DELTAS)


class Alarm:
    """Rings when the simulation's clock is there."""

    def __init__(self) -> None:
        self.due_at: float | None = None

    def set(self, *times: float | None) -> None:
        self.due_at = min((time for time in times if time is not None), default=None)


class Work:
    """A generation in the worker: how far each of its choices is."""

    def __init__(self, command: Generate) -> None:
        assert isinstance(command.prompt, TextPrompt)
        self.length = int(command.prompt.text)
        resumed = command.resumed or [Resumed()] * command.n
        assert len(resumed) == command.n
        for index, one in enumerate(resumed):
            assert one.tokens == [token(index, place) for place in range(len(one.tokens))], "told what was not sent"
        self.ended = [one.finish is not None for one in resumed]
        self.written = [len(one.tokens) for one in resumed]
        self.paused = False
        self.cancelled = False


def token(index: int, place: int) -> int:
    return 10_000 * index + place


class PlayedWorker:
    """What a worker does with its commands, a little at each step."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.loaded = False
        self.closing = False
        self.works: dict[int, Work] = {}
        self.embeds: dict[int, Embed] = {}
        self._read = 0
        self._ended: set[int] = set()
        self._steps = 0

    def take(self) -> None:
        """Read the commands that have come."""
        commands, self._read = self.worker.sent[self._read :], len(self.worker.sent)
        for command in commands:
            self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case Generate(id=id) | Embed(id=id):
                assert self.loaded
                assert id not in {*self.works, *self.embeds, *self._ended}, f"{id} is here already"
                if isinstance(command, Generate):
                    self.works[id] = Work(command)
                else:
                    self.embeds[id] = command
            case Pause(id) | Resume(id):
                assert id in self.works or id in self._ended, f"{id} is unknown"
                if id in self.works:
                    self.works[id].paused = isinstance(command, Pause)
            case Cancel(id):
                assert id in {*self.works, *self.embeds, *self._ended}, f"{id} is unknown"
                if id in self.works:
                    self.works[id].cancelled = True
            case _:
                assert isinstance(command, Load) or type(command).__name__ == "SetThreads"

    def write(self, chance: random.Random) -> None:
        """A token for each choice, mostly; what is through ends."""
        self._steps += 1
        self.worker.report(Tick(self._steps, "decode" if self.works else "idle", len(self.works), 0, 0, 0))
        deltas: list[Delta] = []
        done: list[Done] = []
        for id, work in list(self.works.items()):
            if chance.random() < 0.3 or (work.paused and not work.cancelled):
                continue
            for index, ended in enumerate(work.ended):
                if not ended:
                    deltas.append(self._next(id, work, index))
            if all(work.ended):
                done.append(Done(id, PROMPT_TOKENS, 0, sum(work.written), 1.0, 1.0))
                del self.works[id]
                self._ended.add(id)
        if deltas or done:
            self.worker.report(Step(deltas, done))
        for id, embed in list(self.embeds.items()):
            items = [Embedding(tokens=1, dense=bytes([number, 0, 0, 0])) for number in range(1, len(embed.inputs) + 1)]
            del self.embeds[id]
            self._ended.add(id)
            self.worker.report(Embeddings(id, 0, items, last=True))

    def _next(self, id: int, work: Work, index: int) -> Delta:
        place = work.written[index]
        work.written[index] += 1
        work.ended[index] = work.cancelled or place + 1 >= work.length
        finish = "cancelled" if work.cancelled else "length" if work.ended[index] else None
        return Delta(id, index, f"{place} ", [token(index, place)], finish)


class Reader:
    """A client, and what it has got."""

    def __init__(self, n: int, length: int, terms: Terms) -> None:
        self.n, self.length, self.terms = n, length, terms
        self.texts = [""] * n
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.reads = False
        self.outcome: str | None = None
        self.task: asyncio.Task[None] | None = None

    async def read(self, stream: GenerationStream) -> None:
        self.reads = True
        try:
            async with stream:
                async for batch in stream:
                    for delta in batch:
                        self.texts[delta.index] += delta.text
                    await self.goes_on.wait()
            self.outcome = "done"
            assert stream.done is not None
            assert stream.done.completion_tokens == self.n * self.length
            assert stream.done.prompt_tokens == PROMPT_TOKENS
        except LlmvisorError as error:
            self.outcome = error.code
        except asyncio.CancelledError:
            self.outcome = "left"

    def check(self) -> None:
        whole = "".join(f"{place} " for place in range(self.length))
        for text in self.texts:
            assert whole.startswith(text) if self.outcome != "done" else text == whole, "a gap or a repeat"


class World(FakeWorld):
    """What a seed leads to."""

    def __init__(self, seed: int, **settings: object) -> None:
        super().__init__(restart=Restart(max=1000, backoff=(0.1, 1.0)), parallel=3, load_timeout=600, **settings)
        self.chance = random.Random(seed)
        self.alarm = Alarm()
        self.runtime._alarm = self.alarm  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        self.played: PlayedWorker | None = None
        self.readers: list[Reader] = []
        self.embeds: list[asyncio.Task[object]] = []
        self.crashes = 0
        self.trouble = self.chance.uniform(0, 0.3)

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    # ------------------------------------------------------------------------------------------- what goes wrong

    def ask(self, *, fair: bool = False) -> None:
        """A generation, or texts to embed. `fair` wants an answer, whatever happens to workers."""
        rare = not fair and self.chance.random() < 0.15
        deadline = self.clock.at + self.chance.uniform(0, 5) if rare else None
        terms = Terms(resume=fair or self.chance.random() > 0.1, deadline=deadline)
        if self.chance.random() < 0.15:
            call = self.runtime.embed(EmbeddingRequest("req", ["a", "b"], ["dense"], terms=Terms()))
            self.embeds.append(asyncio.get_running_loop().create_task(call))
            return
        reader = Reader(self.chance.choice([1, 1, 2, 4]), self.chance.randint(1, 40), terms)
        # A request of its own: what is like a poisonous one is refused for a while.
        named = SamplingRequest(seed=len(self.readers))
        asked = Generation("req", TextPrompt(str(reader.length)), named, n=reader.n, terms=terms)
        stream = self.runtime.generate(asked)
        reader.task = asyncio.get_running_loop().create_task(reader.read(stream))
        self.readers.append(reader)

    def crash(self) -> None:
        if self.played is not None:
            self.crashes += 1
            played, self.played = self.played, None
            played.worker.exit(-self.chance.choice(SIGNALS), memory_ran_out=self.chance.choice([True, False, None]))

    def hang(self) -> None:
        if self.played is not None:
            self.played.worker.is_stopped = self.chance.random() < 0.5
            self.clock.at += self.runtime.config.stall_timeout + 0.01

    def leave(self) -> None:
        if here := [one for one in self.readers if one.outcome is None and one.reads]:
            task = self.chance.choice(here).task
            assert task is not None
            task.cancel()

    def dawdle(self) -> None:
        if self.readers:
            self.chance.choice(self.readers).goes_on.clear()

    def catch_up(self) -> None:
        for reader in self.readers:
            reader.goes_on.set()

    def unload(self) -> None:
        self.runtime.unload(force=self.chance.random() < 0.3)

    def breaks(self) -> None:
        if self.played is not None and self.played.loaded:
            self.played.worker.report(Step([Delta(999_999, 0, "x", [1])]))

    def sacrifice(self) -> None:
        self.runtime.sacrifice("out of memory")

    # ----------------------------------------------------------------------------------------------- what happens

    async def step(self, *, trouble: bool) -> None:
        self.clock.at += 0.05
        if trouble and self.chance.random() < 0.3 and len(self.readers) < 40:
            self.ask()
        if trouble and self.chance.random() < self.trouble:
            troubles: list[Callable[[], None]] = [
                *([self.crash] * 3), *([self.leave] * 2), *([self.dawdle] * 3), self.catch_up,
                self.hang, self.unload, self.breaks, self.sacrifice,
            ]  # fmt: skip
            for one in self.chance.choices(troubles, k=self.chance.choice([1, 1, 2, 3])):
                one()
                await self.settle()
        await self.work()

    async def work(self) -> None:
        if self.alarm.due_at is not None and self.clock.at >= self.alarm.due_at:
            self.runtime._wake()  # pyright: ignore[reportPrivateUsage]
        await self.settle()
        if self.workers and (self.played is None or self.played.worker is not self.workers[-1]):
            worker = self.workers[-1]
            if worker not in self._gone:
                assert self.played is None
                self.played = PlayedWorker(worker)
                worker.report(Hello(PROTOCOL_VERSION, "mock", "1", worker.pid))
        if self.played is None:
            return
        worker = self.played.worker
        if worker.stops:
            self.played = None
            worker.exit(0 if worker.stops == ["close"] else -int(signal.SIGKILL))
        elif not self.played.loaded:
            if self.chance.random() < 0.3:
                self.played.loaded = True
                worker.report(Loaded(INFO))
        else:
            self.played.take()
            self.played.write(self.chance)
        await self.settle()

    @property
    def _gone(self) -> set[FakeWorker]:
        return {worker for worker in self.workers if worker.has_gone}

    def check(self) -> None:
        assert len(self.workers) - len(self._gone) <= 1, "two workers at once"
        if self.runtime.in_flight and self.runtime.state not in HAS_WORKER:
            assert self.alarm.due_at is not None, "somebody waits, and nothing will happen"

    async def rest(self) -> None:
        """Nothing goes wrong any more, and everybody reads."""
        for reader in self.readers:
            reader.goes_on.set()
        for _ in range(STEPS_MAX):
            if all(reader.outcome for reader in self.readers) and not self.runtime.in_flight:
                break
            await self.step(trouble=False)
            self.check()
        assert all(reader.outcome for reader in self.readers), f"somebody waits for ever ({self.runtime.state})"
        assert not self.runtime.in_flight, "a request that nobody wants any more is kept"
        for reader in self.readers:
            reader.check()
        for task in self.embeds:
            assert task.done()
            assert task.exception() is None or isinstance(task.exception(), LlmvisorError)

    async def close(self) -> None:
        self.runtime.shutdown()
        for _ in range(STEPS_MAX):
            if self.runtime.state is State.CLOSED:
                return
            await self.step(trouble=False)
        raise AssertionError(f"it never closes: {self.runtime.state}")


async def seeds(first: int, run: Callable[[World], object]) -> list[World]:
    worlds: list[World] = []
    for seed in range(first, min(first + SEEDS_EACH, LAST)):
        world = World(seed, queue_limit=100, stall_timeout=5)
        worlds.append(world)
        try:
            await run(world)  # pyright: ignore[reportGeneralTypeIssues]
            await world.close()
        except Exception as error:
            repeat = f"LLMVISOR_SIMULATION_SEEDS={seed}-{seed + 1} repeats it"
            raise AssertionError(f"seed {seed}: {repeat}: {error}") from error
    return worlds


@pytest.mark.parametrize("first", range(FIRST, LAST, SEEDS_EACH))
async def test_every_stream_ends_once_and_has_each_token_once(first: int) -> None:
    """Whatever goes wrong, and whoever leaves or reads slowly."""

    async def run(world: World) -> None:
        for _ in range(STEPS):
            await world.step(trouble=True)
            world.check()
        await world.rest()

    worlds = await seeds(first, run)
    if LAST - FIRST >= SEEDS_EACH:
        outcomes = {reader.outcome for world in worlds for reader in world.readers}
        assert {"done", "left", "timeout", "runtime_crashed", "model_unloaded", "poison_request"} <= outcomes
        assert sum(world.crashes for world in worlds) > SEEDS_EACH


@pytest.mark.parametrize("first", range(FIRST, LAST, SEEDS_EACH))
async def test_shutdown_at_any_moment_finishes_what_has_begun(first: int) -> None:
    """Workers are killed before it and after it: what runs, or ran in a worker that is gone, is whole; what waits for
    its first is refused."""

    async def run(world: World) -> None:
        for _ in range(world.chance.randint(1, 12)):
            world.ask(fair=True)
            await world.step(trouble=False)
        began = {id(reader) for reader in world.readers if any(reader.texts)}
        world.runtime.shutdown()
        for _ in range(60):
            if world.chance.random() < 0.1 and world.played is not None:
                played, world.played = world.played, None
                played.worker.exit(-int(signal.SIGKILL), memory_ran_out=False)
            await world.step(trouble=False)
        await world.rest()
        for reader in world.readers:
            assert reader.outcome in ({"done"} if id(reader) in began else {"done", ShuttingDown.code})

    await seeds(first, run)
