"""What follows from how a try of a job ends: it is over, or tried again; what it has fetched stays, or goes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from llmvisor.clock import Clock
from llmvisor.control.api import Job, JobState
from llmvisor.jobs import plan
from llmvisor.jobs.ending import Reason, reason_of
from llmvisor.jobs.run import JobRun
from llmvisor.jobs.table import JobTable
from llmvisor.jobs.work import Work
from llmvisor.log import get_logger

_log = get_logger(__name__)


class Outcomes:
    """Belongs to the engine. `random` gives numbers in [0, 1)."""

    def __init__(self, *, table: JobTable, work: Work, clock: Clock, random: Callable[[], float]) -> None:
        self._table = table
        self._work = work
        self._clock = clock
        self._random = random
        self.due: dict[str, float] = {}
        """When a job is tried again."""
        self._tries: dict[str, tuple[int, int]] = {}
        """Tries in a row that brought nothing, and the most bytes that were there after any."""

    async def give_up(self, run: JobRun) -> None:
        """Cancelled: nothing of it stays."""
        if self._table.get(run.job_id).type in plan.FETCHES:
            await self._work.discard(run.job_id)
        self.end(run.job_id, "cancelled", stage="cancelled", result=None)

    async def failed(self, run: JobRun, error: Exception) -> None:
        """Try it again later, where that may help; else it is over, with the reason and the next step."""
        job = self._table.get(run.job_id)
        reason = reason_of(error)
        if reason.bug:
            _log.error("a job failed by a bug", job=job.id, exc_info=error)
        told = _told(reason)
        delay = self._retry_delay(job, reason)
        if delay is not None:
            retry_at = (self._clock.now() + timedelta(seconds=delay)).isoformat()
            self.due[job.id] = self._clock.monotonic() + delay
            self._table.update(
                job.id, state="queued", stage="waiting to try again", retry_at=retry_at, bytes_per_second=0.0, **told
            )
            return
        if job.type in plan.FETCHES and reason.code not in plan.CUT_OFF:
            await self._work.discard(job.id)
        self.end(job.id, "failed", **told)

    def _retry_delay(self, job: Job, reason: Reason) -> float | None:
        """None where it is not tried again. A try that brought something makes those before it forgotten."""
        if not reason.passes or job.type not in plan.KEPT:
            return None
        fruitless, bytes_most = self._tries.get(job.id, (0, 0))
        fruitless = 1 if job.done > bytes_most else fruitless + 1
        self._tries[job.id] = fruitless, max(bytes_most, job.done)
        if fruitless > reason.retries_max:
            return None
        return plan.retry_delay_seconds(fruitless, reason.retry_after_seconds, self._random())

    def broken(self, job_id: str, error: BaseException) -> None:
        """A bug in what carries jobs out: the job is over, whatever state it was in."""
        _log.error("a job ended by a bug", job=job_id, exc_info=error)
        self.end(job_id, "failed", **_told(reason_of(error)))

    def end(self, job_id: str, state: JobState, **changes: object) -> None:
        """It is over."""
        self.due.pop(job_id, None)
        self._tries.pop(job_id, None)
        self._table.update(job_id, state=state, ended_at=self._table.time(), bytes_per_second=0.0, **changes)


def _told(reason: Reason) -> dict[str, str | None]:
    """What a job says of why it failed."""
    return {"error": reason.message, "error_code": reason.code, "hint": reason.hint, "result": None}
