"""How fast bytes come, and when a change is worth telling or writing down. Pure."""

from __future__ import annotations

from collections import deque

from llmvisor import limits
from llmvisor.control.api import Job

_WINDOW_SECONDS = 5.0


class Rate:
    """Bytes per second over the last seconds. What lay there before the first report does not count."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> float:
        """The rate, once `done` bytes are there at the time `now` in seconds."""
        if self._points and done < self._points[-1][1]:
            self._points.clear()  # another file, or begun anew
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[1][0] >= _WINDOW_SECONDS:
            self._points.popleft()
        since, before = self._points[0]
        seconds = now - since
        return (done - before) / seconds if seconds > 0 else 0.0


class Pace:
    """Bounds how often one job is told about and written down while it only gets further."""

    def __init__(self) -> None:
        self._told_at = self._saved_at = float("-inf")

    def tells(self, before: Job | None, job: Job, now: float) -> bool:
        """Whether to tell whoever watches. What is left out is in the next change, and each end is told."""
        if _same_step(before, job) and now - self._told_at < 1 / limits.job_events_per_second_max:
            return False
        self._told_at = now
        return True

    def saves(self, before: Job | None, job: Job, now: float) -> bool:
        """Whether to write the job down."""
        if _same_step(before, job) and now - self._saved_at < limits.job_saved_seconds:
            return False
        self._saved_at = now
        return True


def _same_step(before: Job | None, job: Job) -> bool:
    """Whether a job has only got further."""
    return before is not None and _step(before) == _step(job)


def _step(job: Job) -> tuple[object, ...]:
    return (job.state, job.stage, job.params, job.attempts, job.retry_at, job.error, job.result, job.ended_at)
