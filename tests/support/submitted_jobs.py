"""What a test asks of the jobs' engine, and waits for: installs, their fetches, their ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from tests.support.fake_jobs import Fetch, JobsHarness
from tests.support.polling import eventually

from llmvisor.control.api import Job, JobParams, JobRequest
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FailureKind
from llmvisor.jobs.plan import ENDED


@asynccontextmanager
async def open_harness(staging: Path) -> AsyncGenerator[JobsHarness]:
    """An open engine, whose loop has a single thread."""
    executor = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    it = JobsHarness(staging)
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
