"""Since when a daemon is without a request."""

from __future__ import annotations

from tests.support.fake_worker import FakeWorld, generation

from llmvisor_runtimes.protocol import Done, Step


async def test_idleness_begins_when_the_last_request_ends() -> None:
    """It began when somebody last looked, up to five seconds before: a long answer was followed by an early end."""
    world = FakeWorld()
    worker = await world.loaded()
    async with world.runtime.generate(generation()) as stream:
        world.clock.at += 100
        worker.report(Step([], [Done(1, 1, 0, 0, 0.0, 0.0)]))
        assert [batch async for batch in stream] == []
    assert world.runtime.active_at == world.clock.at
