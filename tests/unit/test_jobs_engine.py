"""The jobs' engine: what it promises to whoever submits, cancels, watches, kills it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.support.fake_jobs import Fetch, JobsHarness, installed
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.control.api import Job, JobParams, JobRequest
from llmvisor.errors import Conflict, ModelNotFound, NotFound, QueueFull, ShuttingDown, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FailureKind
from llmvisor.jobs.ending import FetchCrashed
from llmvisor.jobs.history import JobEvent
from llmvisor.jobs.plan import ENDED
from llmvisor.store.jobs import SavedJob


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None) -> AsyncGenerator[JobsHarness]:
    executor = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    it = JobsHarness(tmp_path / "staging")
    await it.jobs.open()
    yield it
    await it.jobs.close()
    executor.shutdown()


def install(source: str = "hf:org/m", key: str | None = None, **params: str) -> JobRequest:
    return JobRequest("install", msgspec.convert({"source": source, **params}, JobParams), key)


async def fetching(harness: JobsHarness, count: int = 1) -> Fetch:
    """The last fetch, once so many wait for their outcome."""

    def waiting() -> list[Fetch]:
        return [fetch for fetch in harness.fetcher.waiting if not fetch.outcome.done()]

    await eventually(lambda: len(waiting()) == count)
    return waiting()[-1]


async def ended(harness: JobsHarness, job: Job) -> Job:
    await eventually(lambda: harness.jobs.get(job.id).state in ENDED)
    return harness.jobs.get(job.id)


def problem(kind: FailureKind) -> FetchProblem:
    return FetchProblem(kind, f"it is {kind}", hint="do something")


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
