"""What a worker says first, and what becomes of one that says it wrongly, twice or not at all."""

from __future__ import annotations

import pytest
from tests.support.fake_worker import INFO, FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.errors import ModelLoadFailed
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Hello, Load, Loaded, LoadFailed


def hello(version: int = PROTOCOL_VERSION) -> Hello:
    return Hello(version, "mock", "1", 4242)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
async def test_worker_of_another_protocol_version_is_not_tried_again(version: int) -> None:
    """It is told to load nothing, and the model is unavailable at once, with what to do."""
    world = FakeWorld()
    stream = world.runtime.generate(generation())
    worker = await world.worker()
    worker.report(hello(version))
    assert worker.sent == []
    await eventually(lambda: worker.stops == ["kill"])
    worker.exit(-9)
    assert world.runtime.state is State.FAILED
    with pytest.raises(ModelLoadFailed, match="install the same llmvisor"):
        await anext(aiter(stream))


async def test_worker_that_never_says_hello_is_given_up() -> None:
    """Silence is a hang, in this phase as in any other."""
    world = FakeWorld(stall_timeout=0.05)
    world.runtime.load()
    worker = await world.worker()

    def gave_up() -> bool:
        world.clock.at += 0.01
        return worker.stops == ["abort"]

    await eventually(gave_up)


async def test_worker_that_is_loaded_twice_is_replaced() -> None:
    """The second `Loaded` is made up: the worker goes, and another one is started."""
    world = FakeWorld()
    worker = await world.loaded()
    worker.report(Loaded(INFO))
    await eventually(lambda: worker.stops == ["kill"])
    worker.exit(-9)
    assert world.runtime.state is State.BACKOFF


@pytest.mark.parametrize(("permanent", "state"), [(True, State.FAILED), (False, State.BACKOFF)])
async def test_failed_load_is_tried_again_only_where_that_may_help(permanent: bool, state: State) -> None:
    """The worker's own word decides."""
    world = FakeWorld()
    stream = world.runtime.generate(generation())
    worker = await world.worker()
    worker.report(hello())
    assert [type(command) for command in worker.sent] == [Load]
    worker.report(LoadFailed("no such tensor", permanent=permanent))
    await eventually(lambda: worker.stops == ["kill"])
    worker.exit(-9)
    assert world.runtime.state is state
    with pytest.raises(ModelLoadFailed, match="no such tensor"):
        await anext(aiter(stream))
