"""Writes down the requests that have ended, behind their backs: no answer waits for the store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from llmvisor.control.api import UsageRow
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store import limits
from llmvisor.store.usage import EndedRequest, UsageGroup

_log = get_logger(__name__)


class UsageRecords(Protocol):
    """Where they are kept: `store.usage.UsageRows`. Everything raises `StoreUnavailable`."""

    async def add(self, requests: Sequence[EndedRequest]) -> None: ...

    async def sums(self, group_by: Sequence[UsageGroup], *, since: str | None = None) -> list[UsageRow]: ...


class UsageRecorder:
    """Those that are not written yet, at most `usage_buffer_rows_max`; then the oldest are lost, and counted."""

    def __init__(self, records: UsageRecords) -> None:
        self._records = records
        self._buffer: deque[EndedRequest] = deque()
        self._adding: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.lost = 0
        """Requests that were not written, for want of a store."""

    def record(self, request: EndedRequest) -> None:
        """Write it soon; belongs on the loop, and never waits."""
        if len(self._buffer) >= limits.usage_buffer_rows_max:
            self._buffer.popleft()
            self._lose(1)
        self._buffer.append(request)
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._write(), name="usage recorder")
            self._task.add_done_callback(self._written)

    async def sums(self, group_by: Sequence[UsageGroup], *, since: str | None = None) -> list[UsageRow]:
        """Those that have ended until now, summed up. Raises `StoreUnavailable`."""
        try:
            async with asyncio.timeout(limits.usage_flush_seconds_max):
                await self._flush()
        except TimeoutError:
            raise StoreUnavailable("the store does not answer", hint="is its disk well?") from None
        return await self._records.sums(group_by, since=since)

    async def flush(self) -> None:
        """Write what there is now, if that is possible at once; it is kept otherwise."""
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(limits.store_close_seconds_max):
                await self._flush()

    async def close(self) -> None:
        """Write what is left, if that is possible at once."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        try:
            async with asyncio.timeout(limits.store_close_seconds_max):
                await self._flush()
        except (StoreUnavailable, TimeoutError):
            self._lose(len(self._buffer))

    async def _write(self) -> None:
        """Goes on until everything is written; requests that end meanwhile go together."""
        await asyncio.sleep(limits.usage_write_seconds)
        while self._buffer:
            try:
                await self._flush()
            except StoreUnavailable:
                await asyncio.sleep(limits.store_retry_seconds)

    async def _flush(self) -> None:
        """Write what is in the buffer now. Raises `StoreUnavailable`."""
        if self._adding is not None:
            with suppress(StoreUnavailable):
                await asyncio.shield(self._adding)
        if not self._buffer:
            return
        if self._adding is None:
            # In a task of its own: whoever waits may go in the middle, and nothing must be written twice.
            self._adding = asyncio.get_running_loop().create_task(self._add(), name="usage write")
            self._adding.add_done_callback(self._added)
        await asyncio.shield(self._adding)

    async def _add(self) -> None:
        batch = list(self._buffer)
        try:
            await self._records.add(batch)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - tried again it would fail again, and hold up all that come later
            _log.error("requests could not be written into the usage, by a mistake of ours", exc_info=error)
            self._lose(len(batch))
        taken = set(map(id, batch))
        while self._buffer and id(self._buffer[0]) in taken:
            self._buffer.popleft()

    def _added(self, adding: asyncio.Task[None]) -> None:
        self._adding = None
        if not adding.cancelled():
            adding.exception()  # raised for whoever waits

    def _written(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the usage recorder failed by a bug", exc_info=error)

    def _lose(self, requests: int) -> None:
        if requests and not self.lost:
            _log.warning("requests are missing from the usage: the store cannot be written", requests=requests)
        self.lost += requests
