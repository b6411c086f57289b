"""The jobs' engine: takes them in, runs what may run, tries again, cancels, and goes on after a restart.

What it decides is decided in `plan`; how a job changes stands in `table`; what a job does, in `work`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress

import msgspec

from llmvisor import limits
from llmvisor.broadcast import Subscription
from llmvisor.clock import Clock
from llmvisor.control.api import Job, JobRequest, RuntimeStatus
from llmvisor.errors import Conflict, LlmvisorError, QueueFull, ShuttingDown, StoreUnavailable
from llmvisor.jobs import plan
from llmvisor.jobs.history import JobEvent
from llmvisor.jobs.outcomes import Outcomes
from llmvisor.jobs.params import check_request
from llmvisor.jobs.recorder import JobRecords, Recorder
from llmvisor.jobs.run import JobRun
from llmvisor.jobs.table import JobTable
from llmvisor.jobs.work import FINAL, Work
from llmvisor.log import get_logger
from llmvisor.store.jobs import SavedJob

_log = get_logger(__name__)


class Jobs:
    """Every job, the ended ones for a while. `publish` is told of every change; `random` gives numbers in [0, 1)."""

    def __init__(
        self,
        *,
        work: Work,
        records: JobRecords,
        publish: Callable[[Job], None],
        new_id: Callable[[], str],
        clock: Clock,
        random: Callable[[], float],
        fetches_max: int,
    ) -> None:
        self._work = work
        self._records = records
        self._new_id = new_id
        self._clock = clock
        self._most = plan.Limits(fetches_max)
        self._recorder = Recorder(records)
        self._table = JobTable(recorder=self._recorder, publish=publish, clock=clock)
        self._outcomes = Outcomes(table=self._table, work=work, clock=clock, random=random)
        self._runs: dict[str, JobRun] = {}
        self._admissions: dict[str, asyncio.Task[None]] = {}
        self._tidying: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._opened = asyncio.Event()
        self._closing = False

    # ------------------------------------------------------------------------------------------------ life

    async def open(self) -> None:
        """Take in the jobs of an earlier daemon, and go on with them. For once the store and the library are open."""
        self._recorder.start()
        stored = await self._read()
        self._table.take_over(stored)
        await self._work.clear_staging(job.id for job in self._table.all() if plan.keeps_files(job))
        self._opened.set()
        self._start_what_may()

    async def _read(self) -> list[SavedJob]:
        """The jobs of an earlier daemon. Where the store cannot be read, all that needs none goes on meanwhile."""
        while True:
            try:
                return await self._records.all()
            except LlmvisorError as error:
                if not self._opened.is_set():
                    _log.error("the jobs of the last run cannot be read; this is tried again", reason=str(error))
                self._opened.set()
            await asyncio.sleep(limits.job_save_retry_seconds)

    async def opened(self) -> None:
        """Wait until the jobs of an earlier daemon are known. Raises `StoreUnavailable` where that takes too long."""
        if self._opened.is_set():
            return
        try:
            async with asyncio.timeout(limits.jobs_open_seconds_max):
                await self._opened.wait()
        except TimeoutError:
            raise StoreUnavailable("the store is not open yet", hint="try again in a moment") from None

    def configure(self, *, fetches_max: int) -> None:
        """So many downloads at the same time from now on; those that run go on."""
        self._most = plan.Limits(fetches_max)
        if self._opened.is_set():
            self._start_what_may()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return any(job.state not in plan.ENDED for job in self._table.all())

    @property
    def pausable(self) -> bool:
        """Whether all that runs can be gone on with, and nobody waits for one to be taken in."""
        if self._admissions or self._tidying or not self._opened.is_set():
            return False
        return all(self._table.get(job_id).type in plan.KEPT for job_id in self._runs if job_id in self._table)

    async def pause(self) -> None:
        """Stop what runs, for another run of the daemon to go on with, or for `resume`. Takes in no job meanwhile."""
        await self._stop_all()
        await self._recorder.flush(limits.jobs_close_seconds_max)
        self._table.end_watches()

    def resume(self) -> None:
        """Go on with what was stopped."""
        self._closing = False
        for job in self._table.all():
            if job.state not in plan.ENDED:
                left = plan.after_restart(job, self._table.time())
                self._table.update(job.id, **msgspec.structs.asdict(left))
        self._start_what_may()

    async def close(self) -> None:
        """Stop what runs. What can be gone on with stays as it is, for the next daemon."""
        await self._stop_all()
        await self._recorder.close(limits.jobs_close_seconds_max)

    async def _stop_all(self) -> None:
        self._closing = True
        self._set_timer(None)
        tasks = [*(run.task for run in self._runs.values()), *self._admissions.values(), *self._tidying]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=limits.jobs_close_seconds_max)

    # ------------------------------------------------------------------------------------------------ what people ask

    async def submit(self, request: JobRequest) -> Job:
        """Begin a job; the same idempotency key, or the same work under way, gives the job that is there.

        One that outlives a restart is on the disk before this returns. Raises `InvalidRequest`, `ModelNotFound`,
        `NotFound`, `QueueFull`, `StoreUnavailable`.
        """
        check_request(request)
        if request.type in plan.KEPT or request.idempotency_key:
            await self.opened()
        if self._closing:
            raise ShuttingDown("the server is shutting down")
        same = self._table.by_key(request.idempotency_key) or plan.same_work(self._table.all(), request)
        job = same or self._take(request)
        if (admission := self._admissions.get(job.id)) is not None:
            await asyncio.wait([admission])
            if admission.cancelled():
                raise ShuttingDown("the server is shutting down")
            admission.result()
        return self._table.get(job.id)

    def all(self) -> list[Job]:
        """Newest first."""
        return self._table.all()[::-1]

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        return self._table.get(job_id)

    def watch(self, job_id: str, after: int | None = None) -> AbstractContextManager[Subscription[JobEvent]]:
        """How it is and every change from now on, or all since the event with this number; ends with the job.

        Raises `NotFound`.
        """
        self._table.get(job_id)
        return self._table.watch(job_id, after)

    async def cancel(self, job_id: str) -> Job:
        """Raises `NotFound`, or `Conflict` for what cannot be cancelled any more.

        A cancelled job stays so whatever becomes of the daemon, unless the disk is full.
        """
        job = self._cancel(job_id)
        if job.type in plan.KEPT and job_id not in self._admissions:
            with suppress(LlmvisorError):  # the recorder tells, and tries again
                await self._recorder.save_now(job, self._table.key_of(job_id))
        return job

    def _cancel(self, job_id: str) -> Job:
        job = self._table.get(job_id)
        if job.state in plan.ENDED:
            raise Conflict(f"the job {job_id} has {job.state} already")
        if job.state == "cancelling":
            return job
        run = self._runs.get(job_id)
        if run is not None and job.type == "unload":
            raise Conflict("an unload cannot be cancelled", hint="`llmctl load` loads the model again")
        if run is not None and job.stage in FINAL:
            raise Conflict(f"the job {job_id} is at its last step, which takes a moment and cannot be cancelled")
        job = self._table.update(job_id, state="cancelling", stage="cancelling", retry_at=None)
        if run is not None:
            run.task.cancel()
        elif job_id not in self._admissions:
            self._start(job_id, self._outcomes.give_up)
        return job

    def forget(self, job_id: str) -> None:
        """Raises `NotFound`, or `Conflict` while the job runs."""
        job = self._table.get(job_id)
        if job.state not in plan.ENDED:
            raise Conflict(f"the job {job_id} has not ended", hint="cancel it first")
        self._drop([job])

    def on_runtime(self, status: RuntimeStatus) -> None:
        """A runtime has changed: its load's job shows how far it is."""
        progress = status.progress
        if progress is None:
            return
        for run in self._runs.values():
            if run.job_id not in self._table:
                continue  # it has ended just now, and was forgotten at once
            job = self._table.get(run.job_id)
            if job.type == "load" and job.state == "running" and job.params.model == status.model:
                share = progress.done / progress.total if progress.total else 0.0
                run.update(
                    progress=min(1.0, share),
                    stage=progress.stage,
                    done=progress.done,
                    total=progress.total,
                    unit=progress.unit,
                )

    # ------------------------------------------------------------------------------------------------ taking in

    def _take(self, request: JobRequest) -> Job:
        jobs = self._table.all()
        if sum(job.state not in plan.ENDED for job in jobs) >= limits.jobs_waiting_max:
            raise QueueFull(f"{limits.jobs_waiting_max} jobs wait already", hint="`llmctl jobs` lists them")
        self._work.check(request.type, request.params)
        for job_id in plan.superseded(jobs, request):
            self._cancel(job_id)
        job = self._table.new(self._new_id(), request)
        self._drop(plan.forgotten(self._table.all()))
        if job.type in plan.KEPT:
            admission = asyncio.get_running_loop().create_task(self._admit(job), name=f"admit {job.id}")
            self._admissions[job.id] = admission
            admission.add_done_callback(functools.partial(self._admitted, job.id))
        else:
            self._start_what_may()
        return job

    def _drop(self, jobs: list[Job]) -> None:
        """Forget jobs, and what they have kept for others."""
        for job in jobs:
            self._table.drop(job.id)
            if plan.keeps_files(job):
                self._tidying.add(task := asyncio.get_running_loop().create_task(self._work.discard(job.id)))
                task.add_done_callback(self._tidying.discard)

    async def _admit(self, job: Job) -> None:
        await self._recorder.save_now(self._table.get(job.id), self._table.key_of(job.id))
        forerunner = plan.forerunner(self._table.all(), job)
        if forerunner is not None:
            await self._work.adopt(forerunner.id, job.id)

    def _admitted(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._admissions[job_id]
        if task.cancelled() or task.exception() is not None:
            # Nobody was told of it yet.
            self._table.drop(job_id)
        elif self._table.get(job_id).state == "cancelling":
            self._start(job_id, self._outcomes.give_up)
        self._start_what_may()

    # ------------------------------------------------------------------------------------------------ running

    def _start_what_may(self) -> None:
        if self._closing:
            return
        now = self._clock.monotonic()
        for job_id in plan.startable(self._table.all(), self._outcomes.due, now, self._most):
            if job_id in self._admissions or job_id in self._runs:
                continue  # not written down yet; or its last try has failed, and is just ending
            self._outcomes.due.pop(job_id, None)
            job = self._table.get(job_id)
            started_at = job.started_at or self._table.time()
            again = {"attempts": job.attempts + 1, "retry_at": None, "error": None, "error_code": None, "hint": None}
            self._table.update(job_id, state="running", stage="starting", started_at=started_at, **again)
            self._start(job_id, self._attempt)
        for job_id, stage in plan.queued_stages(self._table.all(), self._outcomes.due).items():
            self._table.update(job_id, stage=stage)
        self._set_timer(plan.next_wake(self._outcomes.due, now))

    def _set_timer(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = None if at is None else max(0.0, at - self._clock.monotonic())
        self._timer = None if delay is None else asyncio.get_running_loop().call_later(delay, self._start_what_may)

    def _start(self, job_id: str, act: Callable[[JobRun], Coroutine[None, None, None]]) -> None:
        run = JobRun(job_id, table=self._table, recorder=self._recorder, clock=self._clock)
        self._runs[job_id] = run
        run.task = asyncio.get_running_loop().create_task(act(run), name=f"job {job_id}", context=contextvars.Context())
        run.task.add_done_callback(functools.partial(self._ended, job_id))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._runs[job_id]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._outcomes.broken(job_id, error)
        elif not self._closing and job_id in self._table and self._table.get(job_id).state == "cancelling":
            self._start(job_id, self._outcomes.give_up)  # cancelled before its first step
        self._start_what_may()

    async def _attempt(self, run: JobRun) -> None:
        """One try of a job, and what follows from how it ends."""
        job_id = run.job_id
        try:
            await self._work.perform(self._table.get(job_id), run)
        except asyncio.CancelledError:
            if not self._closing:
                await self._outcomes.give_up(run)
            elif self._table.get(job_id).type not in plan.KEPT:
                self._outcomes.end(job_id, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends or is tried again
            if self._table.get(job_id).state == "cancelling":
                await self._outcomes.give_up(run)
            else:
                await self._outcomes.failed(run, error)
        else:
            self._outcomes.end(job_id, "succeeded", progress=1.0, stage="done", done=self._table.get(job_id).total)
