"""The runtime actor between its scheduler and a worker that does as the test says."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fake_worker import FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.config.tree import ModelConfig, Restart
from llmvisor.errors import InsufficientMemory, ModelLoadFailed, ShuttingDown
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.protocol import Cancel, Delta, Done, Generate, Load, SetThreads, Step


def step(id: int, *texts: str, done: bool = False) -> Step:
    deltas = [Delta(id, 0, text, [1]) for text in texts]
    return Step(deltas, [Done(id, 1, 0, len(texts), 0.0, 0.0)] if done else [])


async def test_worker_is_told_to_load_and_gets_the_request_after_it() -> None:
    """Load, then what waited."""
    world = FakeWorld()
    stream = world.runtime.generate(generation())
    worker = await world.worker()
    worker.load()
    assert [type(command) for command in worker.sent] == [Load, Generate]
    worker.report(step(1, "a", "b", done=True))
    assert [delta.text async for batch in stream for delta in batch] == ["a", "b"]
    assert world.runtime.in_flight == 0


async def test_new_share_of_the_cores_reaches_the_worker() -> None:
    """The worker is told, and the status shows it."""
    world = FakeWorld()
    world.runtime.load()
    worker = await world.worker()
    worker.load()
    world.runtime.set_threads(3)
    assert worker.sent[-1] == SetThreads(3)
    assert world.runtime.status().threads == 8  # set by hand in this world


async def test_unload_while_the_model_is_looked_at_starts_no_worker() -> None:
    """The stop comes before there is a worker: none is started, and the runtime rests."""
    world = FakeWorld()
    looked_at = asyncio.Event()

    async def admit(_: str) -> None:
        await looked_at.wait()

    world.admit = admit
    world.runtime.load()
    await asyncio.sleep(0)
    world.runtime.unload(force=True)
    assert world.runtime.state is State.STOPPING
    looked_at.set()
    assert await world.runtime.wait_while(State.STOPPING) is State.STOPPED
    assert world.workers == []


async def test_unload_while_the_worker_is_forked_kills_it() -> None:
    """The stop comes in the middle of the start: the worker gets it as soon as it is there."""
    world = FakeWorld()
    forked = asyncio.Event()

    async def fork() -> None:
        await forked.wait()

    world.before_start = fork
    world.runtime.load()
    for _ in range(3):
        await asyncio.sleep(0)
    world.runtime.unload()
    forked.set()
    worker = await world.worker()
    await eventually(lambda: worker.stops == ["kill"])
    worker.exit(-9)
    assert world.runtime.state is State.STOPPED


async def test_shutdown_while_the_model_is_looked_at_closes() -> None:
    """Whatever comes of the look, the end comes after it."""
    for error in (None, InsufficientMemory("no room"), ModelLoadFailed("no file")):
        world = FakeWorld()
        looked_at = asyncio.Event()

        async def admit(_: str, looked_at: asyncio.Event = looked_at, error: Exception | None = error) -> None:
            await looked_at.wait()
            if error is not None:
                raise error

        world.admit = admit
        stream = world.runtime.generate(generation())
        await asyncio.sleep(0)
        world.runtime.shutdown()
        looked_at.set()
        assert await world.runtime.wait_while(*(set(State) - {State.CLOSED})) is State.CLOSED
        with pytest.raises(ShuttingDown):
            await anext(aiter(stream))


async def test_place_of_a_client_that_left_is_free_when_the_worker_says_so() -> None:
    """A Cancel is sent once, what still comes is dropped, and the Done that was under way frees the place."""
    world = FakeWorld()
    worker = await world.loaded()
    async with world.runtime.generate(generation()):
        pass
    assert world.runtime.in_flight == 1
    assert [command for command in worker.sent if isinstance(command, Cancel)] == [Cancel(1)]
    worker.report(step(1, "late", done=True))
    assert world.runtime.in_flight == 0
    assert worker.stops == []


async def test_cancelled_call_leaves_the_queue() -> None:
    """Who waits for a load and goes leaves nothing behind."""
    world = FakeWorld()
    call = asyncio.create_task(world.runtime.call(None))
    await world.worker()
    call.cancel()
    await asyncio.wait([call])
    assert world.runtime.in_flight == 0
    world.runtime.abandon_load()
    assert world.runtime.state is State.STOPPING


async def test_nothing_is_believed_of_a_worker_that_broke_the_protocol() -> None:
    """What it still sends before it is dead is no answer."""
    world = FakeWorld()
    worker = await world.loaded()
    stream = world.runtime.generate(generation())
    worker.report(step(99, "nobody's"))
    worker.report(step(1, "late", done=True))
    worker.exit(1)
    newer = await world.restarted()
    assert [command.resumed for command in newer.sent if isinstance(command, Generate)] == [[]]
    newer.report(step(1, "a", done=True))
    assert [delta.text async for batch in stream for delta in batch] == ["a"]


async def test_crash_is_a_pause_for_what_ran_and_for_what_waited() -> None:
    """The next worker gets both, what ran first."""
    world = FakeWorld()
    worker = await world.loaded()
    streams = [world.runtime.generate(generation(2)) for _ in range(2)]
    worker.exit(1)
    assert world.runtime.state is State.BACKOFF
    newer = await world.restarted()
    assert world.runtime.in_flight == 2
    for request_id, stream in enumerate(streams, 1):
        newer.report(step(request_id, "a", done=True))
        assert [delta.text async for batch in stream for delta in batch] == ["a"]
    assert [command.id for command in newer.sent if isinstance(command, Generate)] == [1, 2]


def reloaded(world: FakeWorld, **settings: object) -> None:
    config = ModelConfig(backend="mock", path="/new", **settings)  # pyright: ignore[reportArgumentType]
    world.runtime.reconfigure(config)


async def test_new_configuration_waits_for_what_runs() -> None:
    """The old worker finishes its request; what comes meanwhile is served by the next one, which loads the new path."""
    world = FakeWorld()
    worker = await world.loaded()
    running = world.runtime.generate(generation())
    reloaded(world, queue_limit=7)
    waiting = world.runtime.generate(generation())
    assert (world.runtime.state, worker.stops) == (State.DRAINING, [])
    worker.report(step(1, "a", done=True))
    assert [delta.text async for batch in running for delta in batch] == ["a"]
    assert worker.stops == ["close"]
    worker.exit()
    newer = await world.worker(2)
    newer.load()
    assert [command.path for command in newer.sent if isinstance(command, Load)] == ["/new"]
    newer.report(step(2, "b", done=True))
    assert [delta.text async for batch in waiting for delta in batch] == ["b"]
    assert world.runtime.config.queue_limit == 7


async def test_new_configuration_serves_what_the_old_one_had_no_room_for() -> None:
    """The old file is being looked at when the new one comes: that it does not fit says nothing of the other."""
    world = FakeWorld()
    looked_at = asyncio.Event()

    async def admit(_: str) -> None:
        if world.runtime.config.path != "/new":
            await looked_at.wait()
            raise InsufficientMemory("no room")

    world.admit = admit
    waiting = world.runtime.generate(generation())
    await asyncio.sleep(0)
    reloaded(world)
    looked_at.set()
    worker = await world.worker()
    worker.load()
    worker.report(step(1, "a", done=True))
    assert [delta.text async for batch in waiting for delta in batch] == ["a"]


async def test_new_configuration_is_not_given_up_for_crashes_of_the_old_one() -> None:
    """What waits is served by the next worker, although the old one spends the last restart by crashing."""
    world = FakeWorld(restart=Restart(max=1), preload=True)
    (await world.loaded()).exit(1)
    world.clock.at += 1
    await eventually(lambda: len(world.workers) == 2)
    world.workers[1].load()
    running = world.runtime.generate(generation())
    reloaded(world)
    waiting = world.runtime.generate(generation())
    world.workers[1].exit(1)
    newer = await world.worker(3)
    newer.load()
    for request_id, stream in ((1, running), (2, waiting)):
        newer.report(step(request_id, "b", done=True))
        assert [delta.text async for batch in stream for delta in batch] == ["b"]


async def test_new_configuration_of_a_model_at_rest_starts_nothing() -> None:
    """It counts from the next load on; one that was given up may be tried again."""
    world = FakeWorld()
    reloaded(world)
    assert (world.runtime.state, world.workers) == (State.STOPPED, [])
    worker = await world.loaded()
    assert [command.path for command in worker.sent if isinstance(command, Load)] == ["/new"]
    worker.exit(78)
    assert world.runtime.state is State.FAILED
    reloaded(world)
    assert world.runtime.state is State.STOPPED


async def test_new_configuration_while_the_old_one_loads_ends_that_load() -> None:
    """What waits for the load gets the new one."""
    world = FakeWorld()
    stream = world.runtime.generate(generation())
    worker = await world.worker()
    reloaded(world)
    assert worker.stops == ["kill"]
    worker.exit(-9)
    newer = await world.worker(2)
    newer.load()
    newer.report(step(1, "a", done=True))
    assert [delta.text async for batch in stream for delta in batch] == ["a"]


async def test_new_configuration_of_a_pinned_model_is_loaded_at_once() -> None:
    """Nobody has to ask for what is to be kept loaded."""
    world = FakeWorld(pinned=True)
    worker = await world.loaded()
    reloaded(world, pinned=True)
    worker.exit()
    newer = await world.worker(2)
    newer.load()
    await eventually(lambda: world.runtime.state is State.READY)
