"""What becomes of jobs, decided without a loop, a clock or a disk."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.control.api import Job, JobParams, JobRequest, JobState, JobType
from llmvisor.jobs import plan
from llmvisor.jobs.plan import Limits

NOW = "2026-01-01T00:00:00+00:00"
TYPES: tuple[JobType, ...] = ("install", "import", "load", "unload", "update", "delete")
STATES: tuple[JobState, ...] = ("queued", "running", "cancelling", "cancelled", "succeeded", "failed")


def job(id: str, type: JobType = "load", model: str = "m", state: JobState = "queued", **params: object) -> Job:
    about = {"source": f"hf:org/{model}"} if type == "install" else {"model": model}
    told = msgspec.convert({**about, **params}, JobParams)
    ended = NOW if state in plan.ENDED else None
    return Job(id, type, told, state, 0.0, state, 0, 0, "", created_at=NOW, ended_at=ended)


def startable(*jobs: Job, due: dict[str, float] | None = None, now: float = 0.0, fetches: int = 2) -> list[str]:
    return plan.startable(jobs, due or {}, now, Limits(fetches))


def test_jobs_of_one_model_run_one_after_another() -> None:
    """The second begins when the first has ended, and in the order in which they came."""
    first, second, third = job("1", "update"), job("2", "load"), job("3", "delete")
    assert startable(first, second, third) == ["1"]
    assert startable(msgspec.structs.replace(first, state="running"), second, third) == []
    assert startable(msgspec.structs.replace(first, state="failed"), second, third) == ["2"]


def test_a_job_that_waits_says_for_which() -> None:
    """The one right before it; what waits only for a place says no more than that, what is tried again has its own."""
    jobs = [
        job("1", "update", state="running"),
        job("2", "load"),
        job("3", "delete"),
        job("4", "install", "x"),
        job("5"),
    ]
    said = plan.queued_stages(jobs, {"5"})
    assert said == {"2": "queued after an update, 1", "3": "queued after a load, 2", "4": "queued"}


def test_jobs_of_other_models_run_side_by_side() -> None:
    """Nothing of one holds up another."""
    assert startable(job("1", model="a"), job("2", model="b"), job("3", "delete", model="c")) == ["1", "2", "3"]


def test_only_so_many_fetch_at_once_and_the_rest_goes_on() -> None:
    """Two installs run; a third waits; a load does not."""
    jobs = [job(str(n), "install", model=f"m{n}") for n in range(3)]
    assert startable(*jobs, job("load", model="other")) == ["0", "1", "load"]
    running = [msgspec.structs.replace(one, state="running") for one in jobs[:2]]
    assert startable(*running, jobs[2]) == []
    assert startable(*running[:1], jobs[2]) == ["2"]


def test_no_more_run_than_may() -> None:
    """Of any type."""
    jobs = [job(str(n), model=f"m{n}") for n in range(limits.jobs_running_max + 5)]
    assert len(startable(*jobs)) == limits.jobs_running_max


def test_a_job_that_waits_for_its_next_try_lets_others_go_first() -> None:
    """It frees its place of the limit, not its model; it begins when its time has come."""
    waits, other = job("1", "install", model="a"), job("2", "install", model="b")
    same = job("3", "install", model="a", name="x")
    assert startable(waits, other, same, due={"1": 5.0}, now=4.9, fetches=1) == ["2"]
    assert startable(waits, same, due={"1": 5.0}, now=5.0, fetches=1) == ["1"]
    assert plan.next_wake({"1": 5.0, "2": 3.0}, 4.0) == 5.0
    assert plan.next_wake({"1": 5.0}, 5.0) is None


def test_an_unload_gives_memory_back_whatever_is_fetched() -> None:
    """It waits for no update, for an unload unless it is forced, and for a delete."""
    running = [job("1", kind, state="running") for kind in ("update", "load", "unload", "delete")]
    waits = [startable(one, job("2", "unload")) == [] for one in running]
    forced = [startable(one, job("2", "unload", force=True)) == [] for one in running]
    assert waits == [False, False, True, True]
    assert forced == [False, False, False, True]


def test_an_unload_ends_the_loads_before_it() -> None:
    """Those of its model that run or wait, and no others."""
    jobs = [job("1", state="running"), job("2"), job("3", model="x"), job("4", state="failed"), job("5", "unload")]
    assert plan.superseded(jobs, JobRequest("unload", JobParams(model="m"))) == ["1", "2"]
    assert plan.superseded(jobs, JobRequest("load", JobParams(model="m"))) == []


def test_names_that_differ_in_capitals_are_one_model() -> None:
    """Their folders would be the same on some disks."""
    assert startable(job("1", "delete", model="Tiny"), job("2", "install", model="o", name="tiny")) == ["1"]


def test_same_work_is_the_job_that_does_it_already() -> None:
    """Not one that has ended or is being cancelled, and not one that was told something else."""
    running = job("1", "install", state="running")
    request = JobRequest("install", running.params)
    assert plan.same_work([running], request) == running
    named = msgspec.structs.replace(running, params=msgspec.structs.replace(running.params, model="found"))
    assert plan.same_work([named], request) == named
    for state in ("cancelling", "cancelled", "succeeded", "failed"):
        assert plan.same_work([msgspec.structs.replace(running, state=state)], request) is None
    other = JobRequest("install", msgspec.structs.replace(running.params, quantization="Q8_0"))
    assert plan.same_work([running], other) is None
    assert plan.same_work([job("1", "load", force=True)], JobRequest("load", JobParams(model="m"))) is None


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("state", STATES)
def test_restart_leaves_no_job_between_two_states(type: JobType, state: JobState) -> None:
    """Each is queued again or has ended; what was cancelled stays so, and what cannot go on says why."""
    before = job("1", type, state=state)
    after = plan.after_restart(before, NOW)
    if state in plan.ENDED:
        assert after == before
        return
    expected = {"queued": "queued", "cancelling": "cancelled", "running": "queued"}[state]
    if state == "running" and type in {"load", "unload"}:
        expected = "failed"
        assert after.error == "the daemon was restarted"
        assert after.hint
    assert after.state == expected
    assert (after.ended_at is not None) == (after.state in plan.ENDED)
    assert plan.after_restart(after, NOW) == after


def test_retries_wait_longer_each_time() -> None:
    """Full jitter below a ceiling that doubles, never before the server wants it."""
    numbers = [plan.retry_delay_seconds(n, None, 1.0) for n in range(1, 100)]
    assert numbers == sorted(numbers)
    assert numbers[:3] == [2.0, 4.0, 8.0]
    assert numbers[-1] <= limits.job_backoff_seconds_max
    assert plan.retry_delay_seconds(1, None, 0.0) == 0.0
    assert plan.retry_delay_seconds(1, 90.0, 0.0) == 90.0
    assert plan.retry_delay_seconds(1, 1e9, 0.0) == limits.job_retry_after_seconds_max


def test_only_so_many_ended_jobs_are_kept() -> None:
    """The oldest go; what has not ended stays, however old."""
    jobs = [job("old"), *(job(str(n), state="succeeded") for n in range(limits.jobs_ended_kept_max + 2))]
    assert [one.id for one in plan.forgotten(jobs)] == ["0", "1"]


def test_a_new_job_goes_on_with_the_files_of_the_one_that_was_cut_off() -> None:
    """The last that did the same and failed by the network; not one that failed for good, or fetched something else."""
    failed = msgspec.structs.replace(job("1", "install", state="failed"), error_code="network", ended_at="1")
    later = msgspec.structs.replace(failed, id="2", ended_at="2")
    for_good = msgspec.structs.replace(failed, id="3", error_code="not_found", ended_at="3")
    other = msgspec.structs.replace(job("4", "install", "x", state="failed"), error_code="network", ended_at="4")
    assert plan.forerunner([failed, later, for_good, other], job("5", "install")) == later
    assert plan.forerunner([for_good, other], job("5", "install")) is None
    assert plan.forerunner([failed], job("5", "load")) is None


def test_a_thousand_waiting_jobs_are_decided_at_once() -> None:
    """The loop is not held up, whatever they are about."""
    many = [job(str(n), "install", model=f"m{n}") for n in range(limits.jobs_waiting_max)]
    same = [job(str(n), "load") for n in range(limits.jobs_waiting_max)]
    begun = time.monotonic()
    assert startable(*many) == ["0", "1"]
    assert startable(*same) == ["0"]
    assert time.monotonic() - begun < 1


JOBS = st.lists(
    st.tuples(st.sampled_from(TYPES), st.sampled_from("abc"), st.sampled_from(STATES), st.booleans()), max_size=12
)


@given(JOBS, st.integers(1, 3))
def test_no_two_jobs_that_must_not_meet_are_started(
    drawn: list[tuple[JobType, str, JobState, bool]], most: int
) -> None:
    """Whatever there is: bounds hold, only queued jobs begin, and where nothing runs, something begins."""
    jobs = [
        job(str(n), type, model, state, **({"force": force} if type in {"unload", "delete"} else {}))
        for n, (type, model, state, force) in enumerate(drawn)
    ]
    begun = set(startable(*jobs, fetches=most))
    queued = {one.id for one in jobs if one.state == "queued"}
    under_way = [one for one in jobs if one.state in {"running", "cancelling"}]
    assert begun <= queued
    fetching = sum(one.type in plan.FETCHES for one in [*under_way, *(one for one in jobs if one.id in begun)])
    assert fetching <= max(most, sum(one.type in plan.FETCHES for one in under_way))
    for place, one in enumerate(jobs):
        met = [other.type for other in jobs[:place] if other in under_way and plan.subjects(one) & plan.subjects(other)]
        if one.id in begun:
            assert not met or (one.type == "unload" and "delete" not in met)
    if queued and not under_way:
        assert begun
