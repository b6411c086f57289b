"""What whoever watches a job hears of it: each event once, not too often, the end in any case; and that a job can be
forgotten once it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.fake_jobs import JobsHarness
from tests.support.polling import eventually
from tests.support.submitted_jobs import ended, fetching, install, open_harness

from llmvisor.errors import Conflict, NotFound
from llmvisor.jobs.history import JobEvent
from llmvisor.jobs.plan import ENDED


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None) -> AsyncGenerator[JobsHarness]:
    async with open_harness(tmp_path / "staging") as it:
        yield it


async def test_events_are_replayed_after_the_last_one_seen(harness: JobsHarness) -> None:
    """Each has a number; whoever comes back gets those after its last one, and the end in any case."""
    job = await harness.jobs.submit(install())
    seen: list[JobEvent] = []
    with harness.jobs.watch(job.id) as events:
        async for event in events:
            seen.append(event)
            if event.job.state == "running":
                break
    fetch = await fetching(harness)
    fetch.progress(10)
    fetch.succeed()
    await ended(harness, job)
    with harness.jobs.watch(job.id, seen[-1].id) as events:
        later = [event async for event in events]
    assert later[-1].job.state == "succeeded"
    assert "putting in place" in [event.job.stage for event in later]
    numbers = [event.id for event in [*seen, *later]]
    assert numbers == sorted(set(numbers))
    for after in (numbers[-1], numbers[-1] + 10**6, None):
        with harness.jobs.watch(job.id, after) as events:
            assert [event.job.state async for event in events] == ["succeeded"]
    await eventually(lambda: harness.records.rows[job.id].job.state == "succeeded")
    await harness.restart()
    with harness.jobs.watch(job.id, numbers[-1]) as events:
        (event,) = [event async for event in events]
    assert event.id >= numbers[-1]


async def test_progress_is_told_ten_times_a_second_at_most(harness: JobsHarness) -> None:
    """And written down less often; the last word is told in any case."""
    job = await harness.jobs.submit(install())
    fetch = await fetching(harness)
    before, written = len(harness.told), len(harness.records.history)
    for done in range(1000):
        fetch.progress(done, 1000)
    assert len(harness.told) - before <= 5
    assert harness.jobs.get(job.id).done == 999
    await asyncio.sleep(0)
    assert len(harness.records.history) - written <= 5
    fetch.succeed()
    assert (await ended(harness, job)).progress == 1.0
    assert harness.told[-1].state == "succeeded"


async def test_ended_job_can_be_forgotten_for_good(harness: JobsHarness) -> None:
    """Its row goes too; one that runs is not forgotten."""
    job = await harness.jobs.submit(install())
    with pytest.raises(Conflict):
        harness.jobs.forget(job.id)
    (await fetching(harness)).succeed()
    await ended(harness, job)
    harness.jobs.forget(job.id)
    await eventually(lambda: job.id not in harness.records.rows)
    with pytest.raises(NotFound):
        harness.jobs.get(job.id)


async def test_job_that_is_forgotten_as_it_ends_breaks_nothing(harness: JobsHarness) -> None:
    """Whoever watches hears of the end before the engine has cleared up."""
    uncaught: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(context))
    job = await harness.jobs.submit(install())

    async def forget() -> None:
        with harness.jobs.watch(job.id) as events:
            async for event in events:
                if event.job.state in ENDED:
                    harness.jobs.forget(job.id)

    watcher = asyncio.create_task(forget())
    (await fetching(harness)).succeed()
    await watcher
    await asyncio.sleep(0)
    assert (harness.jobs.all(), uncaught) == ([], [])
    follower = await harness.jobs.submit(install("hf:org/other"))
    (await fetching(harness)).succeed("other")
    assert (await ended(harness, follower)).state == "succeeded"
