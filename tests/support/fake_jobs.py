"""The jobs' engine over a store, a library and fetches that a test holds in its hands."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from llmvisor.clock import SystemClock
from llmvisor.control.api import InstalledModel, Job, JobParams
from llmvisor.errors import Conflict, ModelNotFound, NotFound, StoreUnavailable
from llmvisor.fetch.protocol import Fetched, FetchedFile, FetchProgress, FetchRequest, Unchanged
from llmvisor.jobs.engine import Jobs
from llmvisor.jobs.plan import ENDED
from llmvisor.jobs.work import Work
from llmvisor.store.jobs import SavedJob
from llmvisor.supervision.runtime import Runtime


@dataclass
class FakeRecords:
    """The table of jobs, in memory; survives the engines that use it."""

    rows: dict[str, SavedJob] = field(default_factory=dict[str, SavedJob])
    broken: bool = False
    history: list[Job] = field(default_factory=list[Job])

    async def all(self) -> list[SavedJob]:
        self._check()
        return list(self.rows.values())

    async def save(self, job: Job, key: str | None) -> None:
        await asyncio.sleep(0)
        self._check()
        self.rows[job.id] = SavedJob(job, key)
        self.history.append(job)

    async def delete(self, job_id: str) -> None:
        self._check()
        self.rows.pop(job_id, None)

    def _check(self) -> None:
        if self.broken:
            raise StoreUnavailable("the disk is full")


def installed(name: str, *, source: str = "hf:org/m", revision: str = "r1", path: str = os.devnull) -> InstalledModel:
    """A model whose file is there, whatever is in it."""
    return InstalledModel(name, source, revision, path, f"/{name}", 1, None, "llamacpp", "llm", "now")


@dataclass
class FakeLibrary:
    """Installed models without files."""

    folder: Path
    models: dict[str, InstalledModel] = field(default_factory=dict[str, InstalledModel])
    published: list[str] = field(default_factory=list[str])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Publishing waits for it."""
    gone: set[str] = field(default_factory=set[str])
    publish_error: Exception | None = None

    rolled_back: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.gate.set()

    def staging(self, job_id: str) -> Path:
        path = self.folder / job_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def staged(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    async def publish(
        self, fetched: Fetched, staging: Path, *, name: str, tier: str | None, replace: bool
    ) -> InstalledModel:
        await self.gate.wait()
        if self.publish_error is not None:
            raise self.publish_error
        if not replace:
            self.check_free(name)
        shutil.rmtree(staging)
        self.published.append(name)
        self.models[name] = installed(name, source=fetched.source, revision=fetched.revision)
        return self.models[name]

    async def rollback(self, name: str) -> InstalledModel:
        self.rolled_back.append(name)
        self.models[name] = msgspec.structs.replace(self.models[name], revision="r0")
        return self.models[name]

    async def delete(self, name: str, *, force: bool) -> int:
        if self.models.pop(name, None) is None:
            raise NotFound(f"no {name}")
        return 100

    def installed(self, name: str) -> InstalledModel | None:
        return self.models.get(name)

    def all(self) -> list[InstalledModel]:
        return list(self.models.values())

    def is_gone(self, name: str) -> bool:
        return name in self.gone

    def check_free(self, name: str) -> None:
        if name in self.models.keys() - self.gone:
            raise Conflict(f"{name} is taken")

    async def clear_staging(self, jobs: Collection[str]) -> None:
        for name in self.staged - set(jobs):
            shutil.rmtree(self.folder / name, ignore_errors=True)


class FakeFetcher:
    """Fetches that end when a test says so: each waits in `waiting` for its outcome."""

    def __init__(self) -> None:
        self.requests: list[FetchRequest] = []
        self.waiting: list[Fetch] = []
        self.cancelled = 0

    async def fetch(
        self, request: FetchRequest, *, on_progress: Callable[[FetchProgress], None]
    ) -> Fetched | Unchanged:
        self.requests.append(request)
        fetch = Fetch(request, on_progress, asyncio.get_running_loop().create_future())
        self.waiting.append(fetch)
        _write_half(request.staging)
        try:
            return await fetch.outcome
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting.remove(fetch)


def _write_half(folder: str) -> None:
    Path(folder, "half.partial").write_text("half")


@dataclass
class Fetch:
    request: FetchRequest
    on_progress: Callable[[FetchProgress], None]
    outcome: asyncio.Future[Fetched | Unchanged]

    def progress(self, done: int, total: int = 100, stage: str = "downloading") -> None:
        self.on_progress(FetchProgress(stage, done, total))

    def succeed(self, name: str = "m", revision: str = "r1") -> None:
        file = FetchedFile("x.gguf", 1, "0" * 64)
        self.outcome.set_result(Fetched(self.request.source, revision, [file], "x.gguf", name))

    def unchanged(self) -> None:
        self.outcome.set_result(Unchanged("r1"))

    def fail(self, error: Exception) -> None:
        self.outcome.set_exception(error)


def _nothing() -> None:
    """What a thread does that has nothing left to do."""


class JobsHarness:
    """An engine, and all around it; `restart` gives it another daemon's life."""

    def __init__(self, folder: Path) -> None:
        self.records = FakeRecords()
        self.library = FakeLibrary(folder)
        self.fetcher = FakeFetcher()
        self.told: list[Job] = []
        self.random = 0.0
        self._ids = itertools.count(1)
        self.jobs = self._make()

    def _make(self) -> Jobs:
        work = Work(runtime=self._no_runtime, library=self.library, fetcher=self.fetcher, request=self._request)
        return Jobs(
            work=work,
            records=self.records,
            publish=self.told.append,
            new_id=lambda: f"job_{next(self._ids)}",
            clock=SystemClock(),
            random=lambda: self.random,
            fetches_max=2,
        )

    def _no_runtime(self, name: str) -> Runtime:
        raise ModelNotFound(f"no {name}")

    def _request(self, params: JobParams, staging: str) -> FetchRequest:
        return FetchRequest(params.source or f"file:{params.path}", staging)

    async def kill(self) -> None:
        """End the engine as a SIGKILL does: nothing more is written or removed."""
        written, records = dict(self.records.rows), self.records
        self.records = FakeRecords(written)
        records.broken = True
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.jobs.close()
        await asyncio.to_thread(_nothing)  # threads die with their daemon; here the one that there is has to be done

    async def restart(self) -> None:
        await self.kill()
        self.remake()
        await self.jobs.open()

    def remake(self) -> None:
        """The next daemon's engine, not yet open."""
        self.jobs = self._make()

    @property
    def under_way(self) -> list[Job]:
        return [job for job in self.jobs.all() if job.state not in ENDED]
