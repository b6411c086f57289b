"""Long operations that a person started: watched, cancelled, listed. Kept in memory."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec

from llmvisor import limits
from llmvisor.broadcast import Hub, Subscription
from llmvisor.clock import Clock
from llmvisor.control.api import Job, JobParams, JobRequest, JobState, RuntimeStatus
from llmvisor.errors import Conflict, InternalError, LlmvisorError, NotFound
from llmvisor.log import get_logger
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.state import State

_log = get_logger(__name__)

ENDED: frozenset[JobState] = frozenset({"cancelled", "succeeded", "failed"})


class Jobs:
    """Every job since the start, the ended ones for a while.

    `runtime` finds a model's runtime (raising `ModelNotFound`), `publish` is told of every change.
    """

    def __init__(
        self,
        *,
        runtime: Callable[[str], Runtime],
        publish: Callable[[Job], None],
        new_id: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._runtime = runtime
        self._publish = publish
        self._new_id = new_id
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._keys: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._hubs: dict[str, Hub[Job]] = {}

    def submit(self, request: JobRequest) -> Job:
        """Begin a job; the same idempotency key, or the same work under way, gives the job that is there."""
        runtime = self._runtime(request.params.model)
        same = self._jobs.get(self._keys.get(request.idempotency_key or "", "")) or self._same_work(request)
        if same is not None:
            return same
        job = Job(
            id=self._new_id(),
            type=request.type,
            params=request.params,
            state="running",
            progress=0.0,
            stage="starting",
            done=0,
            total=0,
            unit="",
            created_at=self._time(),
            started_at=self._time(),
        )
        if request.idempotency_key:
            self._keys[request.idempotency_key] = job.id
        self._jobs[job.id] = job
        self._hubs[job.id] = Hub(limits.subscriber_queue_events_max)
        self._forget_old()
        self._publish(job)
        if request.type == "unload":
            self._cancel_loads(request.params.model)
        work = self._load if request.type == "load" else self._unload
        task = asyncio.get_running_loop().create_task(work(job.id, runtime, request.params), name=f"job {job.id}")
        task.add_done_callback(functools.partial(self._ended, job.id))
        self._tasks[job.id] = task
        return job

    def all(self) -> list[Job]:
        """Newest first."""
        return list(reversed(self._jobs.values()))

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job '{job_id}'", hint="`llmctl jobs` lists them")
        return job

    @contextmanager
    def watch(self, job_id: str) -> Generator[Subscription[Job]]:
        """Every change from now on; ends with the job. Raises `NotFound`."""
        self.get(job_id)
        with self._hubs[job_id].subscribe() as subscription:
            yield subscription

    def cancel(self, job_id: str) -> Job:
        """Raises `NotFound`, or `Conflict` for what cannot be cancelled any more."""
        job = self.get(job_id)
        if job.state in ENDED:
            raise Conflict(f"the job {job_id} has {job.state} already")
        if job.type == "unload":
            raise Conflict("an unload cannot be cancelled", hint="`llmctl load` loads the model again")
        job = self._update(job_id, state="cancelling", stage="cancelling")
        self._tasks[job_id].cancel()
        return job

    def forget(self, job_id: str) -> None:
        """Raises `NotFound`, or `Conflict` while the job runs."""
        if self.get(job_id).state not in ENDED:
            raise Conflict(f"the job {job_id} has not ended", hint="cancel it first")
        self._drop(job_id)

    def on_runtime(self, status: RuntimeStatus) -> None:
        """A runtime has changed: its load's job shows how far it is."""
        progress = status.progress
        for job in list(self._jobs.values()):
            if progress and job.type == "load" and job.state == "running" and job.params.model == status.model:
                share = progress.done / progress.total if progress.total else 0.0
                self._update(
                    job.id,
                    progress=min(1.0, share),
                    stage=progress.stage,
                    done=progress.done,
                    total=progress.total,
                    unit=progress.unit,
                )

    async def close(self) -> None:
        """Cancel what runs and wait for it."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------ how

    async def _load(self, job_id: str, runtime: Runtime, params: JobParams) -> None:
        if params.restart:
            runtime.reset()
            runtime.unload()
            self._update(job_id, stage="unloading")
            await runtime.wait_while(State.DRAINING, State.STOPPING)
        self._update(job_id, stage="loading")
        try:
            await runtime.call(None)
        except asyncio.CancelledError:
            runtime.abandon_load()
            raise

    async def _unload(self, job_id: str, runtime: Runtime, params: JobParams) -> None:
        runtime.unload(force=params.force)
        self._update(job_id, stage="draining" if runtime.state is State.DRAINING else "unloading")
        await runtime.wait_while(State.DRAINING, State.STOPPING)

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[job_id]
        if task.cancelled():
            self._end(job_id, "cancelled")
            return
        error = task.exception()
        if error is None:
            self._end(job_id, "succeeded", progress=1.0, stage="done", done=self._jobs[job_id].total)
        elif isinstance(error, LlmvisorError):
            self._end(job_id, "failed", error=str(error), error_code=error.code)
        else:
            _log.error("a job failed by a bug", job=job_id, exc_info=error)
            self._end(job_id, "failed", error="internal error; the log has it", error_code=InternalError.code)

    def _end(self, job_id: str, state: JobState, **changes: object) -> None:
        self._update(job_id, state=state, ended_at=self._time(), **changes)
        self._hubs[job_id].close()

    def _update(self, job_id: str, **changes: object) -> Job:
        before = self._jobs[job_id]
        job = self._jobs[job_id] = msgspec.structs.replace(before, **changes)
        if job != before:
            self._hubs[job_id].publish(job)
            self._publish(job)
        return job

    def _cancel_loads(self, model: str) -> None:
        """Else the load would go on waiting, and the model be loaded again behind the unload."""
        for job in list(self._jobs.values()):
            if job.type == "load" and job.state == "running" and job.params.model == model:
                self.cancel(job.id)

    def _same_work(self, request: JobRequest) -> Job | None:
        for job in self._jobs.values():
            if job.state not in ENDED and job.type == request.type and job.params == request.params:
                return job
        return None

    def _forget_old(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.state in ENDED]
        for job_id in ended[: -limits.jobs_ended_kept_max]:
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        del self._jobs[job_id]
        del self._hubs[job_id]
        self._keys = {key: kept for key, kept in self._keys.items() if kept != job_id}

    def _time(self) -> str:
        return self._clock.now().isoformat()
