"""The jobs' engine, to whoever submits: what is told is on the disk, what is asked twice is done once and in its order,
and what cannot be is refused at once."""

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
from llmvisor.errors import Conflict, ModelNotFound, NotFound, QueueFull, StoreUnavailable


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None) -> AsyncGenerator[JobsHarness]:
    async with open_harness(tmp_path / "staging") as it:
        yield it


async def test_install_fetches_and_puts_in_place(harness: JobsHarness) -> None:
    """Its progress is told in bytes; afterwards the job knows the model, and nothing is left in staging."""
    job = await harness.jobs.submit(install(name="mine"))
    (await fetching(harness)).progress(30)
    now = harness.jobs.get(job.id)
    assert (now.state, now.stage, now.progress, now.done, now.total, now.unit) == (
        *("running", "downloading"),
        *(0.3, 30, 100, "bytes"),
    )
    (await fetching(harness)).succeed()
    last = await ended(harness, job)
    assert (last.state, last.progress, last.params.model, last.attempts) == ("succeeded", 1.0, "mine", 1)
    assert last.result == "mine is installed, revision r1"
    assert harness.library.published == ["mine"]
    assert harness.library.staged == set()


async def test_install_is_on_the_disk_before_anybody_is_told(harness: JobsHarness) -> None:
    """And where it cannot be written, there is no job."""
    job = await harness.jobs.submit(install())
    assert job.id in harness.records.rows
    await fetching(harness)
    harness.records.broken = True
    with pytest.raises(StoreUnavailable):
        await harness.jobs.submit(install("hf:org/other"))
    assert [one.id for one in harness.jobs.all()] == [job.id]
    assert len(harness.fetcher.requests) == 1


async def test_two_installs_of_one_model_are_one_job(harness: JobsHarness) -> None:
    """Also at the same moment; after its end, or with another key, it is a new one."""
    first, second = await asyncio.gather(harness.jobs.submit(install()), harness.jobs.submit(install()))
    assert first.id == second.id
    (await fetching(harness)).succeed()
    await ended(harness, first)
    harness.library.gone.add("m")
    assert (await harness.jobs.submit(install())).id != first.id


async def test_idempotency_key_gives_the_same_job_after_a_restart(harness: JobsHarness) -> None:
    """A client that was cut off asks again, and nothing is done twice."""
    first = await harness.jobs.submit(install(key="k"))
    (await fetching(harness)).succeed()
    await ended(harness, first)
    await eventually(lambda: harness.records.rows[first.id].job.state == "succeeded")
    await harness.restart()
    assert (await harness.jobs.submit(install(key="k"))).id == first.id
    with pytest.raises(Conflict, match="m is taken"):
        await harness.jobs.submit(install(key="other"))
    assert (await harness.jobs.submit(install(key="other", name="again"))).id != first.id


async def test_update_swaps_or_says_that_it_is_the_newest(harness: JobsHarness) -> None:
    """It fetches from where the model came from, and tells what it has."""
    harness.library.models["m"] = installed("m", source="hf:org/m:x.gguf")
    update = JobRequest("update", JobParams(model="m"))
    job = await harness.jobs.submit(update)
    fetch = await fetching(harness)
    assert (fetch.request.source, fetch.request.known_revision) == ("hf:org/m:x.gguf", "r1")
    fetch.unchanged()
    last = await ended(harness, job)
    assert (last.state, last.result) == ("succeeded", "m has the newest revision already, r1")
    assert harness.library.staged == set()
    job = await harness.jobs.submit(update)
    (await fetching(harness)).succeed("another-name", "r2")
    assert (await ended(harness, job)).result == "m is installed, revision r2"
    assert harness.library.models["m"].revision == "r2"
    back = await harness.jobs.submit(JobRequest("update", JobParams(model="m", rollback=True)))
    assert (await ended(harness, back)).result == "m is at revision r0 again"


async def test_update_fetches_files_that_are_gone_again(harness: JobsHarness) -> None:
    """Else they would be called the newest that there are."""
    harness.library.models["m"] = installed("m", path="/nowhere/x.gguf")
    job = await harness.jobs.submit(JobRequest("update", JobParams(model="m")))
    fetch = await fetching(harness)
    assert fetch.request.known_revision is None
    fetch.succeed(revision="r1")
    assert (await ended(harness, job)).result == "m is installed, revision r1"


async def test_delete_tells_the_bytes_and_is_done_once(harness: JobsHarness) -> None:
    """After a kill in the middle, what is gone already is no failure."""
    harness.library.models["m"] = installed("m")
    delete = JobRequest("delete", JobParams(model="m"))
    last = await ended(harness, await harness.jobs.submit(delete))
    assert (last.state, last.result) == ("succeeded", "100 bytes are free again")
    with pytest.raises(NotFound):
        await harness.jobs.submit(delete)
    await eventually(lambda: harness.records.rows[last.id].job.state == "succeeded")
    row = harness.records.rows[last.id]
    again = msgspec.structs.replace(row.job, state="running", ended_at=None)
    await harness.kill()
    harness.records.rows[last.id] = msgspec.structs.replace(row, job=again)
    await harness.restart()
    assert (await ended(harness, last)).state == "succeeded"


async def test_what_cannot_be_is_refused_at_once(harness: JobsHarness) -> None:
    """No job comes of it."""
    harness.library.models["taken"] = installed("taken", source="ollama:taken:1b")
    for request, error in (
        (install(name="taken"), Conflict),
        (install("hf:other/Taken-GGUF:x.gguf"), Conflict),
        (install("ollama:taken:1b"), Conflict),
        (JobRequest("update", JobParams(model="nobody")), NotFound),
        (JobRequest("load", JobParams(model="nobody")), ModelNotFound),
    ):
        with pytest.raises(error):
            await harness.jobs.submit(request)
    assert harness.jobs.all() == []


async def test_too_many_jobs_are_refused(harness: JobsHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script gone wild fills neither the disk nor the memory."""
    monkeypatch.setattr(limits, "jobs_waiting_max", 3)
    for n in range(3):
        await harness.jobs.submit(install(f"hf:org/m{n}"))
    with pytest.raises(QueueFull):
        await harness.jobs.submit(install("hf:org/more"))


async def test_job_waits_for_an_earlier_one_that_is_not_written_down_yet(
    harness: JobsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of one model keep their order, whichever of them the disk takes first."""
    harness.library.models["m"] = installed("m")
    slow, save = asyncio.Event(), harness.records.save

    async def save_slowly(job: Job, key: str | None) -> None:
        if job.type == "update":
            await slow.wait()
        await save(job, key)

    monkeypatch.setattr(harness.records, "save", save_slowly)
    update = asyncio.create_task(harness.jobs.submit(JobRequest("update", JobParams(model="m"))))
    await asyncio.sleep(0)
    delete = await harness.jobs.submit(JobRequest("delete", JobParams(model="m")))
    await asyncio.sleep(0)
    assert harness.jobs.get(delete.id).stage.startswith("queued after an update")
    slow.set()
    first = await update
    (await fetching(harness)).unchanged()
    assert (await ended(harness, first)).state == "succeeded"
    assert (await ended(harness, delete)).state == "succeeded"
