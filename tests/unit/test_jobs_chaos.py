"""Jobs under whatever comes in whatever order: submits, cancels, failures, full disks, kills."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.fake_jobs import JobsHarness
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.control.api import Job, JobParams, JobRequest
from llmvisor.errors import LlmvisorError
from llmvisor.fetch.failures import FetchProblem
from llmvisor.jobs import plan
from llmvisor.jobs.ending import FetchCrashed

STEPS = 80


@pytest.fixture
async def harness(tmp_path: Path, leak_check: None, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[JobsHarness]:
    monkeypatch.setattr(limits, "job_save_retry_seconds", 0.001)
    executor = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    it = JobsHarness(tmp_path / "staging")
    await it.jobs.open()
    yield it
    await it.jobs.close()
    executor.shutdown()


class Chaos:
    """One run of steps that a seed decides."""

    def __init__(self, harness: JobsHarness, seed: int) -> None:
        self.harness = harness
        self.random = random.Random(seed)
        self.told: set[str] = set()
        """Jobs of which somebody was told, who relies on them."""
        self.cancelled: set[str] = set()
        self.steps: list[Callable[[], object]] = [
            *[self.submit] * 6,
            *[self.outcome] * 8,
            *[self.cancel] * 2,
            *[self.full_disk] * 2,
            self.kill,
        ]

    async def step(self) -> None:
        done = self.random.choice(self.steps)()
        if asyncio.iscoroutine(done):
            await done
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)
        self.check_always()

    async def submit(self) -> None:
        model = f"m{self.random.randrange(4)}"
        request = self.random.choice(
            [
                JobRequest("install", JobParams(source=f"hf:org/{model}")),
                JobRequest("import", JobParams(path=f"/{model}", name=model)),
                JobRequest("update", JobParams(model=model)),
                JobRequest("delete", JobParams(model=model)),
            ]
        )
        with suppress(LlmvisorError):  # there already, or not there, or the disk is full
            self.told.add((await self.harness.jobs.submit(request)).id)

    def outcome(self) -> None:
        waiting = [fetch for fetch in self.harness.fetcher.waiting if not fetch.outcome.done()]
        if not waiting:
            return
        fetch = self.random.choice(waiting)
        fetch.progress(self.random.randrange(100))
        match self.random.randrange(6):
            case 0:
                fetch.fail(FetchProblem("network", "gone", hint=""))
            case 1:
                fetch.fail(FetchProblem("wrong_checksum", "bad", hint=""))
            case 2:
                fetch.fail(FetchCrashed("crashed"))
            case _:
                name = fetch.request.source.rpartition("/")[2]
                fetch.succeed(name, f"r{self.random.randrange(3)}")

    async def cancel(self) -> None:
        under_way = self.harness.under_way
        if not under_way:
            return
        job = self.random.choice(under_way)
        try:
            await self.harness.jobs.cancel(job.id)
        except LlmvisorError:
            return  # at its last step
        if not self.harness.records.broken:
            self.cancelled.add(job.id)

    def full_disk(self) -> None:
        self.harness.records.broken = not self.harness.records.broken

    async def kill(self) -> None:
        await self.harness.restart()

    def check_always(self) -> None:
        """Whatever happens: bounds and order hold."""
        jobs = self.harness.jobs.all()[::-1]
        running = [job for job in jobs if job.state in {"running", "cancelling"}]
        fetching = [job for job in running if job.state == "running" and job.type in plan.FETCHES]
        assert len(fetching) <= 2
        for place, job in enumerate(running):
            others = [one for one in running[:place] if one.state == "running" and job.state == "running"]
            assert not [one for one in others if plan.subjects(one) & plan.subjects(job) and _about_same(one, job)]

    async def settle(self) -> None:
        """All goes well from now on: everything comes to its end."""
        self.harness.records.broken = False

        def over() -> bool:
            for fetch in self.harness.fetcher.waiting:
                if not fetch.outcome.done():
                    fetch.succeed(fetch.request.source.rpartition("/")[2], "r9")
            return not self.harness.under_way

        await eventually(over, 5, "every job ends")
        await eventually(self.rows_agree, 10, "the store has what the engine has")

    def rows_agree(self) -> bool:
        rows = {id: saved.job.state for id, saved in self.harness.records.rows.items()}
        return rows == {job.id: job.state for job in self.harness.jobs.all()}


def _about_same(one: Job, other: Job) -> bool:
    """The names that they were told, not what they found on their way."""
    return bool(
        {one.params.name, one.params.source, one.params.path} & {other.params.name, other.params.source} - {None}
    )


@pytest.mark.parametrize("seed", range(25))
async def test_nothing_is_lost_stuck_or_left_whatever_happens(harness: JobsHarness, seed: int) -> None:
    """1. A hundred things happen in an order that the seed decides. 2. All goes well from then on. Result: every job
    that somebody was told of has ended and is in the store, and only what may be gone on with is left in staging."""
    chaos = Chaos(harness, seed)
    for _ in range(STEPS):
        await chaos.step()
    await chaos.settle()
    known = {job.id: job for job in harness.jobs.all()}
    assert chaos.told <= known.keys()
    assert {job.state for job in known.values()} <= plan.ENDED
    kept = {job.id for job in known.values() if plan.keeps_files(job)}
    await eventually(lambda: harness.library.staged <= kept)
    assert all(job.ended_at and not job.retry_at for job in known.values())
    succeeded = [job for job in known.values() if job.state == "succeeded" and job.type in {"install", "import"}]
    assert all(job.params.model and job.result for job in succeeded)
    assert all(known[id].state in {"cancelled", "succeeded"} for id in chaos.cancelled & known.keys())
