"""A job while it runs."""

from __future__ import annotations

import asyncio

from llmvisor.clock import Clock
from llmvisor.jobs.progress import Rate
from llmvisor.jobs.recorder import Recorder
from llmvisor.jobs.table import JobTable


class JobRun:
    """One try of a job: its task, and how fast it is. Implements `work.Handle`."""

    task: asyncio.Task[None]

    def __init__(self, job_id: str, *, table: JobTable, recorder: Recorder, clock: Clock) -> None:
        self.job_id = job_id
        self._table = table
        self._recorder = recorder
        self._clock = clock
        self._rate = Rate()

    def update(self, **changes: object) -> None:
        """Change fields of the job. One that is being cancelled goes on saying so."""
        done = changes.get("done")
        if isinstance(done, int) and changes.get("unit") == "bytes":
            changes["bytes_per_second"] = round(self._rate.add(self._clock.monotonic(), done), 1)
        if self._table.get(self.job_id).state == "cancelling":
            changes.pop("stage", None)
        self._table.update(self.job_id, **changes)

    async def write_down(self) -> None:
        await self._recorder.save_now(self._table.get(self.job_id), self._table.key_of(self.job_id))
