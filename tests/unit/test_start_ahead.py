"""A worker that is started while others still leave to make room for its model."""

from __future__ import annotations

import asyncio
import signal

import pytest
from tests.support.fake_worker import INFO, FakeWorker, FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.errors import InsufficientMemory, ModelLoadFailed
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Command, Hello, Load, Loaded, Tick

HELLO = Hello(PROTOCOL_VERSION, "mock", "1", FakeWorker.pid)
STARTING = Tick(step=0, phase="start", active=0, waiting=0, tokens=0, rss_bytes=1)


async def ahead(**settings: object) -> tuple[FakeWorld, FakeWorker, asyncio.Future[None]]:
    """A world whose worker has started, and whose memory is on its way."""
    world = FakeWorld(**settings)
    world.memory = asyncio.get_running_loop().create_future()
    world.runtime.load()
    worker = await world.worker()
    return world, worker, world.memory


async def test_worker_that_is_ready_first_loads_once_the_memory_is_there() -> None:
    """It has said who it is, and that it lives; no model is loaded into memory that others still have."""
    world, worker, memory = await ahead()
    worker.report(HELLO)
    worker.report(STARTING)
    assert worker.sent == []
    memory.set_result(None)
    await eventually(lambda: worker.sent)
    assert isinstance(worker.sent[0], Load)
    worker.report(Loaded(INFO))
    assert world.runtime.state is State.READY


async def test_process_is_known_while_it_waits() -> None:
    """What it takes by then is counted as a part of what it needs, for which its pid has to be known."""
    world, worker, _ = await ahead()
    assert world.published[-1].pid == worker.pid


async def test_memory_that_is_there_first_waits_for_the_worker() -> None:
    """The usual order: the others have gone before it has begun to speak."""
    _, worker, memory = await ahead()
    memory.set_result(None)
    await asyncio.sleep(0)
    assert worker.sent == []
    worker.report(HELLO)
    assert isinstance(worker.sent[0], Load)


async def test_worker_counts_as_hung_only_once_it_may_load() -> None:
    """For as long as it waits for memory it can do nothing."""
    world, worker, memory = await ahead(stall_timeout=5)
    world.clock.at += 60
    assert world.runtime.wakes_at is None
    memory.set_result(None)
    await eventually(lambda: world.runtime.wakes_at == world.clock.at + 5)
    assert worker.stops == []


async def test_memory_that_does_not_come_ends_the_worker_before_who_waits_is_told() -> None:
    """The refusal is that of a model that does not fit, and leaves no process; the next request tries again."""
    world, worker, memory = await ahead()
    stream = world.runtime.generate(generation())
    memory.set_exception(InsufficientMemory("it needs about 5 GiB"))
    await eventually(lambda: worker.stops == ["kill"])
    assert world.runtime.state is State.LOADING
    worker.exit(-signal.SIGKILL)
    with pytest.raises(InsufficientMemory, match="5 GiB"):
        await anext(aiter(stream))
    assert world.runtime.state is State.STOPPED
    assert world.runtime.postmortems.all() == []
    assert world.published[-1].pid is None
    world.memory = None
    world.runtime.load()
    (await world.worker(2)).load()
    assert world.runtime.state is State.READY


async def test_worker_that_dies_meanwhile_waits_for_memory_no_more() -> None:
    """Its place among those who wait is given up, and the crash counts as one."""
    world, worker, memory = await ahead()
    stream = world.runtime.generate(generation())
    worker.exit(1)
    with pytest.raises(ModelLoadFailed, match="code 1"):
        await anext(aiter(stream))
    assert world.runtime.state is State.BACKOFF
    await eventually(memory.cancelled)


async def test_unload_meanwhile_ends_the_worker_and_nothing_is_loaded() -> None:
    """Admission lets go of a load whose runtime stops; the process goes as any other that loads."""
    world, worker, memory = await ahead()
    worker.report(HELLO)
    world.runtime.unload()
    assert worker.stops == ["kill"]
    memory.set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert worker.sent == []
    worker.exit(-signal.SIGKILL)
    assert world.runtime.state is State.STOPPED


async def test_memory_that_is_refused_while_it_stops_changes_nothing() -> None:
    """The stop came first: whoever waits is served by what comes next, and not refused."""
    world, worker, memory = await ahead()
    world.runtime.unload()
    memory.set_exception(InsufficientMemory("no room"))
    await eventually(lambda: len(worker.stops) >= 1)
    worker.exit(-signal.SIGKILL)
    assert world.runtime.state is State.STOPPED


async def test_worker_that_cannot_be_told_to_load_is_ended_before_another_one_starts() -> None:
    """As where the options are longer than a frame may be: there is one worker at most."""
    world, worker, memory = await ahead()
    stream = world.runtime.generate(generation())
    worker.report(HELLO)
    worker.send = too_long
    memory.set_result(None)
    await eventually(lambda: worker.stops == ["kill"])
    assert world.runtime.state is State.LOADING
    worker.exit(-signal.SIGKILL)
    with pytest.raises(ModelLoadFailed, match="longer than a frame"):
        await anext(aiter(stream))
    assert world.runtime.state is State.BACKOFF


def too_long(command: Command) -> int:
    del command
    raise ValueError("longer than a frame may be")
