"""Jobs that are cut short: one that is cancelled leaves nothing behind, and one whose daemon is killed or stopped goes
on in the next daemon, where nothing is lost or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from tests.support.fake_jobs import JobsHarness, installed
from tests.support.polling import eventually
from tests.support.submitted_jobs import ended, fetching, install, open_harness

from llmvisor import limits
from llmvisor.control.api import Job, JobParams, JobRequest
from llmvisor.errors import Conflict, ShuttingDown, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem
from llmvisor.store.jobs import SavedJob


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None) -> AsyncGenerator[JobsHarness]:
    async with open_harness(tmp_path / "staging") as it:
        yield it


async def test_cancel_while_it_waits_runs_and_is_written_down(harness: JobsHarness) -> None:
    """At each of these nothing is left behind, and the fetch is told to end."""
    jobs = [await harness.jobs.submit(install(f"hf:org/m{n}")) for n in range(3)]
    await fetching(harness, 2)
    assert harness.jobs.get(jobs[2].id).state == "queued"
    early = asyncio.ensure_future(harness.jobs.submit(install("hf:org/early")))
    await eventually(lambda: len(harness.jobs.all()) == 4)
    for job in harness.jobs.all():
        assert (await harness.jobs.cancel(job.id)).state == "cancelling"
        assert (await harness.jobs.cancel(job.id)).state == "cancelling"
    for job in [*jobs, await early]:
        assert (await ended(harness, job)).state == "cancelled"
    assert harness.fetcher.cancelled == 2
    assert harness.library.staged == set()
    assert len(harness.fetcher.requests) == 2
    with pytest.raises(Conflict):
        await harness.jobs.cancel(jobs[0].id)


async def test_cancel_before_the_first_step_ends_it_too(harness: JobsHarness) -> None:
    """A task that is cancelled before it has begun never runs: the job stayed in `cancelling` for ever."""
    job = await harness.jobs.submit(install())
    await harness.jobs.cancel(job.id)
    assert (await ended(harness, job)).state == "cancelled"
    assert harness.fetcher.requests == []


async def test_last_step_cannot_be_cancelled(harness: JobsHarness) -> None:
    """It is a rename: the model is there or it is not."""
    harness.library.gate.clear()
    job = await harness.jobs.submit(install())
    (await fetching(harness)).succeed()
    await eventually(lambda: harness.jobs.get(job.id).stage == "putting in place")
    with pytest.raises(Conflict):
        await harness.jobs.cancel(job.id)
    harness.library.gate.set()
    assert (await ended(harness, job)).state == "succeeded"


# ------------------------------------------------------------------------------------------------------ kills and stops


async def test_running_install_goes_on_after_a_kill(harness: JobsHarness) -> None:
    """Again and again: with the same id, from what lies in its staging folder."""
    job = await harness.jobs.submit(install())
    for _ in range(12):
        await fetching(harness)
        await harness.restart()
        assert harness.jobs.get(job.id).state == "running"
        assert harness.library.staged == {job.id}
    (await fetching(harness)).succeed()
    assert (await ended(harness, job)).state == "succeeded"
    assert {request.staging for request in harness.fetcher.requests} == {str(harness.library.folder / job.id)}


@pytest.mark.parametrize("placed", [False, True])
async def test_kill_in_the_last_step_neither_loses_nor_doubles(harness: JobsHarness, placed: bool) -> None:
    """1. The daemon is killed while it puts the model in place, before or after the rename. Result: the model is there
    once, and the job has succeeded."""
    harness.library.gate.clear()
    job = await harness.jobs.submit(install())
    (await fetching(harness)).succeed()
    await eventually(lambda: harness.records.rows[job.id].job.stage == "putting in place")
    harness.library.publish_error = FetchProblem("disk", "killed", hint="")
    harness.library.gate.set()
    await harness.kill()
    harness.library.publish_error = None
    if placed:
        harness.library.models["m"] = installed("m")
    await harness.restart()
    if not placed:
        (await fetching(harness)).succeed()
    last = await ended(harness, job)
    assert (last.state, last.result, last.params.model) == ("succeeded", "m is installed, revision r1", "m")
    assert list(harness.library.models) == ["m"]
    assert len(harness.fetcher.requests) == (1 if placed else 2)


async def test_kill_while_cancelling_leaves_it_cancelled(harness: JobsHarness) -> None:
    """And its files are removed by the next daemon."""
    job = await harness.jobs.submit(install())
    await fetching(harness)
    row = harness.records.rows[job.id]
    await harness.kill()
    cancelling = msgspec.structs.replace(row.job, state="cancelling")
    harness.records.rows[job.id] = msgspec.structs.replace(row, job=cancelling)
    await harness.restart()
    assert harness.jobs.get(job.id).state == "cancelled"
    assert harness.library.staged == set()
    await eventually(lambda: harness.records.rows[job.id].job.state == "cancelled")


@pytest.mark.parametrize("done", [True, False])
async def test_kill_after_a_rollback_does_not_go_forward_again(harness: JobsHarness, done: bool) -> None:
    """The next daemon sees whether it was done: a second rollback would undo the first."""
    model = msgspec.structs.replace(installed("m"), previous_revision="r0")
    harness.library.models["m"] = model
    job = await harness.jobs.submit(JobRequest("update", JobParams(model="m", rollback=True)))
    await ended(harness, job)
    written = next(one for one in harness.records.history if one.state == "running" and one.result)
    await harness.kill()
    harness.records.rows[job.id] = SavedJob(written, None)
    harness.library.models["m"] = installed("m", revision="r0") if done else model
    harness.library.rolled_back.clear()
    await harness.restart()
    assert (await ended(harness, job)).result == "m is at revision r0 again"
    assert harness.library.rolled_back == ([] if done else ["m"])


async def test_stop_leaves_downloads_to_the_next_daemon(harness: JobsHarness) -> None:
    """SIGTERM is no cancel; new jobs are refused."""
    job = await harness.jobs.submit(install())
    await fetching(harness)
    await harness.jobs.close()
    assert harness.fetcher.waiting == []
    with pytest.raises(ShuttingDown):
        await harness.jobs.submit(install("hf:org/x"))
    await harness.restart()
    (await fetching(harness)).succeed()
    assert (await ended(harness, job)).state == "succeeded"


async def test_stop_tells_whoever_waits_for_a_job_to_be_written_down(
    harness: JobsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the daemon ends; nothing of the job stays."""

    async def save_never(job: Job, key: str | None) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(harness.records, "save", save_never)
    submitted = asyncio.create_task(harness.jobs.submit(install()))
    await asyncio.sleep(0)
    monkeypatch.setattr(limits, "jobs_close_seconds_max", 0.1)
    await harness.jobs.close()
    with pytest.raises(ShuttingDown):
        await submitted
    assert harness.jobs.all() == []


# ---------------------------------------------------------------------------------------------- the next daemon's start


@pytest.mark.usefixtures("harness")
async def test_submit_waits_for_the_jobs_of_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. An install comes before the store is open. 2. It opens. Result: it is taken in then, after those that were
    there. Where it never opens, that is said in time."""
    harness = JobsHarness(tmp_path / "staging")
    waiting = asyncio.ensure_future(harness.jobs.submit(install()))
    await asyncio.sleep(0)
    assert harness.jobs.all() == []
    await harness.jobs.open()
    assert (await waiting).state == "running"
    await harness.jobs.close()
    monkeypatch.setattr(limits, "jobs_open_seconds_max", 0.01)
    never = JobsHarness(tmp_path / "staging")
    with pytest.raises(StoreUnavailable):
        await never.jobs.submit(install())
    await never.jobs.close()


async def test_store_that_cannot_be_read_costs_only_what_needs_it(
    harness: JobsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The store is locked at the start. Result: jobs are listed, an install is refused, and nothing that waits is
    removed. 2. It is free again. Result: the jobs of the last run go on."""
    monkeypatch.setattr(limits, "job_save_retry_seconds", 0.05)
    job = await harness.jobs.submit(install())
    await fetching(harness)
    await harness.kill()
    harness.records.broken = True
    harness.remake()
    opening = asyncio.ensure_future(harness.jobs.open())
    await harness.jobs.opened()
    assert harness.jobs.all() == []
    with pytest.raises(StoreUnavailable):
        await harness.jobs.submit(install("hf:org/x"))
    assert harness.library.staged == {job.id}
    harness.records.broken = False
    await opening
    (await fetching(harness)).succeed()
    assert (await ended(harness, job)).state == "succeeded"
