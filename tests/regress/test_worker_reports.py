"""What a worker reported, and the daemon took wrongly."""

from __future__ import annotations

import pytest
from tests.support.fake_worker import FakeWorld, generation

from llmvisor_runtimes.protocol import Delta, Phase, Step, Tick


@pytest.mark.parametrize("index", [-1, 2])
async def test_delta_of_a_choice_that_was_not_asked_for_is_a_violation(index: int) -> None:
    """It reached the HTTP layer, which looked for a choice that was not there: a 500 for each such request."""
    world = FakeWorld()
    worker = await world.loaded()
    async with world.runtime.generate(generation(2)):
        worker.report(Step([Delta(1, index, "x", [1])]))
        assert worker.stops == ["kill"]
        worker.exit(-9)


async def test_first_idle_tick_is_told() -> None:
    """Who followed the events saw the last busy second for as long as the model was idle."""
    world = FakeWorld()
    worker = await world.loaded()
    phases: tuple[Phase, ...] = ("decode", "idle", "idle")
    before = len(world.published)
    for tokens, phase in zip((5, 0, 0), phases, strict=True):
        worker.report(Tick(step=1, phase=phase, active=0, waiting=0, tokens=tokens, rss_bytes=1))
    assert [status.phase for status in world.published[before:]] == ["decode", "idle"]
    assert world.published[-1].tokens_per_second == 0
