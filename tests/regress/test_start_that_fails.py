"""Starts that fail in a way nobody thought of."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.fake_worker import FakeWorld, generation
from tests.support.polling import eventually

from llmvisor.errors import ModelLoadFailed
from llmvisor.supervision.scheduling.state import State


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")])
async def test_start_without_threads_or_descriptors_is_a_crash(error: Exception) -> None:
    """The look at the file or at the free memory failed, and the model said that it was loading for ever after."""
    world = FakeWorld()

    async def admit(_: str) -> None:
        raise error

    world.admit = admit
    stream = world.runtime.generate(generation())
    with pytest.raises(ModelLoadFailed, match=str(error.args[-1])):
        await asyncio.wait_for(anext(aiter(stream)), 5)
    assert world.runtime.state is State.BACKOFF
    world.clock.at += 60
    world.admit = lambda _: _nothing()
    world.runtime.unload()
    world.runtime.generate(generation())
    await eventually(lambda: world.workers)


async def _nothing() -> None:
    pass
