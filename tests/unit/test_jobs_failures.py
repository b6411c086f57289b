"""Jobs whose work fails: what may pass is tried again, as often and as late as it should be, and in the end the job
says why it failed and what to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.fake_jobs import JobsHarness
from tests.support.polling import eventually
from tests.support.submitted_jobs import ended, fetching, install, open_harness, problem

from llmvisor import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FailureKind
from llmvisor.jobs.ending import FetchCrashed


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None) -> AsyncGenerator[JobsHarness]:
    async with open_harness(tmp_path / "staging") as it:
        yield it


@pytest.mark.parametrize("kind", ["not_found", "forbidden", "no_space", "wrong_checksum", "refused", "invalid", "disk"])
async def test_what_will_not_pass_is_not_tried_again(harness: JobsHarness, kind: FailureKind) -> None:
    """The job fails at once with the reason and the next step, and nothing is left."""
    job = await harness.jobs.submit(install())
    (await fetching(harness)).fail(problem(kind))
    last = await ended(harness, job)
    assert (last.state, last.error_code, last.error, last.hint) == ("failed", kind, f"it is {kind}", "do something")
    assert last.attempts == 1
    assert harness.library.staged == set()


async def test_what_may_pass_is_tried_again_until_it_is_too_much(harness: JobsHarness) -> None:
    """Between two tries it is queued and says why; in the end it fails, and what was fetched stays for another go."""
    job = await harness.jobs.submit(install())
    for _ in range(limits.job_retries_max + 1):
        (await fetching(harness)).fail(problem("network"))
    last = await ended(harness, job)
    assert (last.state, last.error_code, last.attempts) == ("failed", "network", limits.job_retries_max + 1)
    waits = [one for one in harness.told if one.retry_at]
    assert len(waits) == limits.job_retries_max
    assert all((one.state, one.error_code) == ("queued", "network") for one in waits)
    assert harness.library.staged == {job.id}


async def test_a_try_that_brought_something_makes_failures_forgotten(harness: JobsHarness) -> None:
    """A bad line ends no download that goes on."""
    job = await harness.jobs.submit(install())
    for done in range(0, 30 * (limits.job_retries_max + 3), 30):
        fetch = await fetching(harness)
        fetch.progress(done, 10_000)
        fetch.progress(done + 30, 10_000)
        fetch.fail(problem("network"))
    (await fetching(harness)).succeed()
    assert (await ended(harness, job)).state == "succeeded"


async def test_bytes_of_earlier_tries_are_nothing_that_a_try_brought(harness: JobsHarness) -> None:
    """Each try reports first what lies there already, file by file: a dead host is not asked for ever."""
    job = await harness.jobs.submit(install())
    for _ in range(limits.job_retries_max + 1):
        fetch = await fetching(harness)
        for done in (0, 5_000):
            fetch.progress(done, 10_000)
        fetch.fail(problem("network"))
    last = await ended(harness, job)
    assert (last.state, last.attempts) == ("failed", limits.job_retries_max + 1)


async def test_retry_waits_as_long_as_it_should(harness: JobsHarness) -> None:
    """Others go on meanwhile; a cancel ends the wait."""
    harness.random = 0.99
    job = await harness.jobs.submit(install())
    (await fetching(harness)).fail(FetchProblem("network", "busy", hint="", retry_after_seconds=3000))
    await eventually(lambda: harness.jobs.get(job.id).retry_at)
    waiting = harness.jobs.get(job.id)
    assert (waiting.state, waiting.stage) == ("queued", "waiting to try again")
    other = await harness.jobs.submit(install("hf:org/other"))
    (await fetching(harness)).succeed("other")
    await ended(harness, other)
    await harness.jobs.cancel(job.id)
    assert (await ended(harness, job)).state == "cancelled"
    assert harness.library.staged == set()


async def test_fetch_process_that_crashes_is_tried_less_often(harness: JobsHarness) -> None:
    """It will crash again, most likely."""
    job = await harness.jobs.submit(install())
    for _ in range(limits.job_crashes_max):
        (await fetching(harness)).fail(FetchCrashed("was killed by SIGSEGV"))
    last = await ended(harness, job)
    assert (last.error_code, last.attempts) == ("fetch_crashed", limits.job_crashes_max)
    assert "llmctl logs" in (last.hint or "")
    assert harness.library.staged == set()  # what makes it crash may lie there


async def test_a_bug_ends_the_job_and_nothing_else(harness: JobsHarness) -> None:
    """It is logged; the job says where to look."""
    job = await harness.jobs.submit(install())
    (await fetching(harness)).fail(ZeroDivisionError())
    last = await ended(harness, job)
    assert (last.state, last.error_code) == ("failed", "internal_error")
    assert "llmctl logs" in (last.hint or "")
    assert (await harness.jobs.submit(install())).state == "running"


async def test_install_goes_on_with_what_a_failed_one_had_fetched(harness: JobsHarness) -> None:
    """1. An install fails by the network, its half stays. 2. The same is asked again. Result: the new job has it. A
    failed job that is forgotten takes its half with it."""
    job = await harness.jobs.submit(install())
    for again in (True, False):
        for _ in range(limits.job_retries_max + 1):
            (await fetching(harness)).fail(problem("network"))
        await ended(harness, job)
        assert harness.library.staged == {job.id}
        assert len(list((harness.library.folder / job.id).iterdir())) == 1
        job = await harness.jobs.submit(install()) if again else job
    await harness.restart()
    assert harness.library.staged == {job.id}
    harness.jobs.forget(job.id)
    await eventually(lambda: harness.library.staged == set())


# ------------------------------------------------------------------------------------------------------------- the disk


async def test_disk_that_fills_while_it_runs_ends_nothing(harness: JobsHarness) -> None:
    """States are written once it can be; before the last step the job waits for that."""
    job = await harness.jobs.submit(install())
    fetch = await fetching(harness)
    harness.records.broken = True
    fetch.succeed()
    fetch = await fetching(harness)
    waited = [one for one in harness.told if one.retry_at]
    assert [(one.state, one.error_code) for one in waited] == [("queued", "store_unavailable")]
    harness.records.broken = False
    fetch.succeed()
    assert (await ended(harness, job)).state == "succeeded"


async def test_no_space_at_the_last_step_says_so(harness: JobsHarness) -> None:
    """An error of the system's own is told as well."""
    harness.library.publish_error = OSError(28, "No space left on device")
    job = await harness.jobs.submit(install())
    (await fetching(harness)).succeed()
    last = await ended(harness, job)
    assert (last.state, last.error_code) == ("failed", "no_space")
    assert "No space left" in (last.error or "")
    assert last.hint
    assert last.result is None
