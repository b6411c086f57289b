"""What is written down of requests: behind their backs, each once, and bounded while the store cannot take it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.support.polling import eventually

from llmvisor.control.api import UsageRow
from llmvisor.errors import StoreUnavailable
from llmvisor.store import limits
from llmvisor.store.usage import EndedRequest, UsageGroup
from llmvisor.usage import UsageRecorder

pytestmark = pytest.mark.usefixtures("leak_check")


class Records:
    """See `usage.UsageRecords`; takes what it gets, unless it is broken or held."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.broken = False
        self.poison = ""
        self.tries = 0
        self.free = asyncio.Event()
        self.free.set()

    @property
    def written(self) -> list[str]:
        return [name for batch in self.batches for name in batch]

    async def add(self, requests: Sequence[EndedRequest]) -> None:
        self.tries += 1
        await self.free.wait()
        if self.broken:
            raise StoreUnavailable("the disk is full")
        if self.poison in [request.request_id for request in requests]:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        self.batches.append([request.request_id for request in requests])

    async def sums(self, group_by: Sequence[UsageGroup], *, since: str | None = None) -> list[UsageRow]:
        return [UsageRow(len(self.written), 0, 0, 0, 0, None, 0.0, 0.0, day=since)]


def request(number: int) -> EndedRequest:
    return EndedRequest(time="2026-05-01", request_id=f"r{number}", model="m", service="local", task_type="chat")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "usage_write_seconds", 0.02)
    monkeypatch.setattr(limits, "store_retry_seconds", 0.02)


async def test_requests_are_written_together() -> None:
    """What ends within a moment is one batch; nothing is left running once it is written."""
    records = Records()
    recorder = UsageRecorder(records)
    for number in range(5):
        recorder.record(request(number))
    await eventually(lambda: len(records.written) == 5)
    assert len(records.batches) == 1
    recorder.record(request(5))
    await eventually(lambda: len(records.written) == 6)
    await recorder.close()
    assert records.written == [f"r{number}" for number in range(6)]


async def test_usage_that_is_asked_for_is_up_to_date() -> None:
    """A request that has just ended is in the sums, once, although its batch was under way when somebody left."""
    records = Records()
    recorder = UsageRecorder(records)
    recorder.record(request(0))
    records.free.clear()
    left = asyncio.create_task(recorder.sums([]))
    await eventually(lambda: records.tries == 1)
    recorder.record(request(1))
    left.cancel()
    asking = asyncio.create_task(recorder.sums([], since="2026-05-01"))
    await asyncio.sleep(0)
    records.free.set()
    (row,) = await asking
    assert (row.requests, row.day) == (2, "2026-05-01")
    await recorder.close()
    assert records.written == ["r0", "r1"]


async def test_requests_wait_for_a_store_that_cannot_be_written() -> None:
    """While the disk is full they are kept, and written once it is not; whoever asks meanwhile is told."""
    records = Records()
    records.broken = True
    recorder = UsageRecorder(records)
    recorder.record(request(0))
    await eventually(lambda: records.tries >= 3)
    with pytest.raises(StoreUnavailable):
        await recorder.sums([])
    records.broken = False
    recorder.record(request(1))
    await eventually(lambda: records.written == ["r0", "r1"])
    await recorder.close()
    assert recorder.lost == 0


async def test_requests_that_cannot_be_written_at_all_hold_up_no_others() -> None:
    """They are lost with their batch, and counted; those that come later are written, and the end is no failure."""
    records = Records()
    records.poison = "r0"
    recorder = UsageRecorder(records)
    recorder.record(request(0))
    await eventually(lambda: recorder.lost == 1)
    recorder.record(request(1))
    await eventually(lambda: records.written == ["r1"])
    records.poison = "r2"
    recorder.record(request(2))
    await recorder.close()
    assert recorder.lost == 2


async def test_requests_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away for long costs the oldest requests, and the daemon knows how many."""
    monkeypatch.setattr(limits, "usage_buffer_rows_max", 3)
    records = Records()
    records.broken = True
    recorder = UsageRecorder(records)
    for number in range(10):
        recorder.record(request(number))
    records.broken = False
    await recorder.close()
    assert records.written == ["r7", "r8", "r9"]
    assert recorder.lost == 7


async def test_overflow_while_writing_loses_and_doubles_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are being written when the buffer overflows are neither written twice nor taken for others."""
    monkeypatch.setattr(limits, "usage_buffer_rows_max", 3)
    records = Records()
    recorder = UsageRecorder(records)
    for number in range(3):
        recorder.record(request(number))
    records.free.clear()
    await eventually(lambda: records.tries == 1)
    recorder.record(request(3))
    records.free.set()
    await eventually(lambda: records.written == ["r0", "r1", "r2", "r3"])
    await recorder.close()
    assert records.written == ["r0", "r1", "r2", "r3"]


async def test_close_gives_up_on_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's end does not wait for a dead disk."""
    monkeypatch.setattr(limits, "store_close_seconds_max", 0.05)
    records = Records()
    records.free.clear()
    recorder = UsageRecorder(records)
    recorder.record(request(0))
    await recorder.close()
    assert recorder.lost == 1
    records.free.set()
    await eventually(lambda: records.written == ["r0"])
