"""Writes jobs down behind their backs: whatever the disk does, no job waits for it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from llmvisor import limits
from llmvisor.control.api import Job
from llmvisor.errors import LlmvisorError
from llmvisor.log import get_logger
from llmvisor.store.jobs import SavedJob

_log = get_logger(__name__)


class JobRecords(Protocol):
    """Where jobs are kept over restarts: `store.jobs.JobRows`. Everything raises `StoreUnavailable`."""

    async def all(self) -> list[SavedJob]:
        """In the order in which they came."""
        ...

    async def save(self, job: Job, key: str | None) -> None: ...

    async def delete(self, job_id: str) -> None: ...


class Recorder:
    """The latest of each job that is not written yet, and the task that writes it."""

    def __init__(self, records: JobRecords) -> None:
        self._records = records
        self._unsaved: dict[str, SavedJob | None] = {}
        """By job; None = to be deleted."""
        self._awake = asyncio.Event()
        self._closing = asyncio.Event()
        self._complained = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write; until then it is only kept."""
        self._task = asyncio.get_running_loop().create_task(self._write(), name="job recorder")

    def put(self, job: Job, key: str | None) -> None:
        """Write this down soon; of several states of a job only the last."""
        self._unsaved[job.id] = SavedJob(job, key)
        self._awake.set()

    def forget(self, job_id: str) -> None:
        self._unsaved[job_id] = None
        self._awake.set()

    async def save_now(self, job: Job, key: str | None) -> None:
        """Return once the job is written. Raises an `LlmvisorError` where it cannot be."""
        await self._records.save(job, key)

    async def flush(self, seconds: float) -> None:
        """Wait until what is left is written, for no longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._task is not None and self._unsaved and not self._complained:  # noqa: ASYNC110 - any may change
                    await asyncio.sleep(limits.job_flush_poll_seconds)

    async def close(self, seconds: float) -> None:
        """Write what is left, for no longer than this, and where the store can be written at all."""
        self._closing.set()
        if self._task is None:
            return
        self._awake.set()
        await asyncio.wait([self._task], timeout=seconds)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _write(self) -> None:
        while self._unsaved or not self._closing.is_set():
            if not self._unsaved:
                self._awake.clear()
                await self._awake.wait()
                continue
            job_id, stored = next(iter(self._unsaved.items()))
            if not await self._saved(job_id, stored):
                if self._closing.is_set():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), limits.job_save_retry_seconds)
            elif job_id in self._unsaved and self._unsaved[job_id] is stored:
                del self._unsaved[job_id]

    async def _saved(self, job_id: str, stored: SavedJob | None) -> bool:
        try:
            if stored is None:
                await self._records.delete(job_id)
            else:
                await self._records.save(stored.job, stored.key)
        except LlmvisorError as error:
            if not self._complained:
                _log.warning("jobs are not written down; this is tried again", reason=str(error))
            self._complained = True
            return False
        except Exception as error:  # noqa: BLE001 - a bug with one job is no reason to write down no other
            _log.error("a job cannot be written down", job=job_id, exc_info=error)
            return True
        self._complained = False
        return True
