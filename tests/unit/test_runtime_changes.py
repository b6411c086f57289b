"""A runtime that gets another configuration while it has requests."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fake_worker import FakeWorker, FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.config.tree import ModelConfig
from llmvisor.errors import RuntimeCrashed
from llmvisor.supervision.configured import Trial
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.protocol import Delta, Done, Generate, Load, Step

AFTER = ModelConfig(backend="mock", path="/after")


def paths(world: FakeWorld) -> list[str]:
    return [command.path for worker in world.workers for command in worker.sent if isinstance(command, Load)]


def generates(worker: FakeWorker) -> list[Generate]:
    return [command for command in worker.sent if isinstance(command, Generate)]


async def next_worker(world: FakeWorld, count: int) -> FakeWorker:
    await eventually(lambda: len(world.workers) == count, 5)
    return world.workers[-1]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_text_of_a_worker_that_dies_is_finished_before_another_file_is_loaded(when: str) -> None:
    """It was to finish first, or had just crashed: only the model that began the text can go on with it."""
    world = FakeWorld(path="/before")
    worker = await world.loaded()
    begun, told = world.runtime.generate(generation()), list[str | None]()
    worker.report(Step([Delta(1, 0, "a", [1])], []))
    if when == "after":
        worker.exit(-9)
    world.runtime.reconfigure(AFTER, Trial(world.runtime.config, told.append))
    if when == "before":
        assert world.runtime.state is State.DRAINING
        worker.exit(-9)
    fresh = world.runtime.generate(generation())
    second = await next_worker(world, 2)
    second.load()
    assert generates(second)[0].resumed[0].tokens == [1]
    done = {command.id: Done(command.id, 1, 0, 2, 0.0, 0.0) for command in generates(second)}
    second.report(Step([Delta(each, 0, "b", [2]) for each in done], list(done.values())))
    assert second.stops == ["close"]
    second.exit()
    third = await next_worker(world, 3)
    third.load()
    assert paths(world) == ["/before", "/before", "/after"]
    assert (world.runtime.state, told) == (State.READY, [None])
    for command in generates(third):
        third.report(Step([Delta(command.id, 0, "b", [2])], [Done(command.id, 1, 0, 1, 0.0, 0.0)]))
    assert "".join([delta.text async for batch in begun for delta in batch]) == "ab"
    assert "".join([delta.text async for batch in fresh for delta in batch]) == "b"


async def test_text_that_nobody_wants_any_more_holds_up_no_other_file() -> None:
    """Its client has gone by the time that its worker dies."""
    world = FakeWorld(path="/before")
    worker = await world.loaded()
    begun = world.runtime.generate(generation())
    worker.report(Step([Delta(1, 0, "a", [1])], []))
    world.runtime.reconfigure(AFTER)
    async with begun:
        pass
    worker.exit(-9)
    world.runtime.load()
    (await next_worker(world, 2)).load()
    await asyncio.sleep(0)
    assert paths(world) == ["/before", "/after"]


async def test_text_whose_file_has_gone_holds_up_no_other_file() -> None:
    """It ends with an error, and who else waits is served by what is configured now."""
    world = FakeWorld(path="/before")
    worker = await world.loaded()
    begun = world.runtime.generate(generation())
    worker.report(Step([Delta(1, 0, "a", [1])], []))
    world.runtime.reconfigure(AFTER)
    world.signature = None
    worker.exit(-9)
    (await next_worker(world, 2)).load()
    assert paths(world) == ["/before", "/after"]
    with pytest.raises(RuntimeCrashed):
        _ = [batch async for batch in begun]
