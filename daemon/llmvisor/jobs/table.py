"""Every job that the daemon knows, and the one way in which one changes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import msgspec

from llmvisor.broadcast import Subscription
from llmvisor.clock import Clock
from llmvisor.control.api import Job, JobRequest
from llmvisor.errors import NotFound
from llmvisor.jobs.history import JobEvent, JobHistory
from llmvisor.jobs.plan import ENDED, after_restart
from llmvisor.jobs.progress import Pace
from llmvisor.jobs.recorder import Recorder
from llmvisor.store.jobs import SavedJob


class JobTable:
    """Jobs in the order in which they came. Each change is told to `publish` and to whoever watches, and recorded."""

    def __init__(self, *, recorder: Recorder, publish: Callable[[Job], None], clock: Clock) -> None:
        self._recorder = recorder
        self._publish = publish
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._keys: dict[str, str] = {}
        self._key_of: dict[str, str] = {}
        self._histories: dict[str, JobHistory] = {}
        self._paces: dict[str, Pace] = {}

    def all(self) -> list[Job]:
        """In the order in which they came."""
        return list(self._jobs.values())

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job '{job_id}'", hint="`llmctl jobs` lists them")
        return job

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def by_key(self, key: str | None) -> Job | None:
        """The job that was asked for under this key."""
        return self._jobs.get(self._keys.get(key or "", ""))

    def key_of(self, job_id: str) -> str | None:
        return self._key_of.get(job_id)

    def new(self, job_id: str, request: JobRequest) -> Job:
        """A job in `queued`."""
        now = self.time()
        job = Job(job_id, request.type, request.params, "queued", 0.0, "queued", 0, 0, "", created_at=now)
        self._enter(SavedJob(job, request.idempotency_key))
        self._tell(None, job)
        return job

    def take_over(self, stored: Iterable[SavedJob]) -> list[Job]:
        """The jobs of an earlier daemon, ahead of those that came meanwhile. Gives those that the restart changed."""
        came, self._jobs = self._jobs, {}
        changed: list[Job] = []
        for one in stored:
            if one.job.id in came:
                continue
            job = after_restart(one.job, self.time())
            self._enter(SavedJob(job, one.key))
            self._histories[job.id].add(job, at_least=self._milliseconds())
            if job.state in ENDED:
                self._histories[job.id].close()
            if job != one.job:
                changed.append(job)
                self._recorder.put(job, one.key)
        self._jobs |= came
        return changed

    def _enter(self, stored: SavedJob) -> None:
        job_id = stored.job.id
        self._jobs[job_id] = stored.job
        self._histories[job_id] = JobHistory()
        self._paces[job_id] = Pace()
        if stored.key:
            self._keys[stored.key] = job_id
            self._key_of[job_id] = stored.key

    def update(self, job_id: str, **changes: object) -> Job:
        """Change fields of a job, and tell it where it is another one then."""
        before = self._jobs[job_id]
        job = self._jobs[job_id] = msgspec.structs.replace(before, **changes)
        if job != before:
            self._tell(before, job)
        if job.state in ENDED:
            self._histories[job_id].close()
        return job

    def drop(self, job_id: str) -> None:
        """Forget a job, here and where it is recorded."""
        del self._jobs[job_id]
        del self._paces[job_id]
        self._histories.pop(job_id).close()
        self._keys.pop(self._key_of.pop(job_id, ""), None)
        self._recorder.forget(job_id)

    @contextmanager
    def watch(self, job_id: str, after: int | None) -> Generator[Subscription[JobEvent]]:
        """See `JobHistory.watch`. Raises `NotFound`."""
        self.get(job_id)
        with self._histories[job_id].watch(after) as subscription:
            yield subscription

    def end_watches(self) -> None:
        """End everything that watches a job: it can come back."""
        for history in self._histories.values():
            history.end_watches()

    def time(self) -> str:
        return self._clock.now().isoformat()

    def _tell(self, before: Job | None, job: Job) -> None:
        now, pace = self._clock.monotonic(), self._paces[job.id]
        if pace.saves(before, job, now):
            self._recorder.put(job, self._key_of.get(job.id))
        if pace.tells(before, job, now):
            self._histories[job.id].add(job, at_least=self._milliseconds())
            self._publish(job)

    def _milliseconds(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
