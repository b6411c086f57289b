"""What real workers write to stdout and stderr, and how little a flood of it can do."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from pathlib import Path

import pytest
from tests.support.polling import eventually
from tests.support.workers import Recorded, start

from llmvisor import limits
from llmvisor.supervision.workers.capture import CUT_MARK

pytestmark = [pytest.mark.both_loops, pytest.mark.usefixtures("leak_check")]

MEGABYTE = 1024 * 1024


async def killed(recorded: Recorded) -> None:
    recorded.stop("kill")
    await recorded.exit()


async def longest_stall(seconds: list[float]) -> None:
    """Note each time that the loop took to come round."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.001)
        seconds.append(time.monotonic() - before)


async def test_both_streams_are_lines_of_the_log(tmp_path: Path) -> None:
    """stdout and stderr are both read, while the worker lives."""
    recorded = await start(tmp_path, "serve")
    await eventually(lambda: sorted(recorded.lines) == ["ready", "warned"])
    assert recorded.worker is not None
    assert sorted(recorded.worker.last_lines) == ["ready", "warned"]
    await killed(recorded)


async def test_printing_does_not_corrupt_frames(tmp_path: Path) -> None:
    """A library that prints writes to the log, never among the frames."""
    recorded = await start(tmp_path, "lines 500")
    assert await recorded.text() == "written"
    await eventually(lambda: len(recorded.lines) == 500)
    assert recorded.lines == [f"line {number}" for number in range(500)]
    await killed(recorded)


async def test_last_words_are_in_the_exit(tmp_path: Path) -> None:
    """What a worker wrote just before it died is kept with its exit."""
    recorded = await start(tmp_path, "lines 300 exit")
    ended = await recorded.exit()
    assert ended.last_lines == [f"line {number}" for number in range(300)][-limits.log_lines_per_worker :]


async def test_log_flood_is_bounded(tmp_path: Path) -> None:
    """1. A worker writes lines without end. Result: the loop goes on, memory stays, the surplus is counted."""
    stalls: list[float] = []
    watch = asyncio.create_task(longest_stall(stalls))
    recorded = await start(tmp_path, "flood")
    await eventually(lambda: len(recorded.lines) > limits.log_lines_burst_max)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    enough = len(stalls) + 300
    await eventually(lambda: len(stalls) > enough, seconds=20)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 20 * MEGABYTE
    assert len(recorded.lines) < limits.log_lines_burst_max + limits.log_lines_per_second_max * 30
    assert statistics.median(stalls) < 0.2
    await killed(recorded)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert any(line.endswith(" lines left out: too many at once)") for line in recorded.lines[-2:])


async def test_endless_line_is_bounded(tmp_path: Path) -> None:
    """Megabytes without a line feed are one line, cut."""
    recorded = await start(tmp_path, "one-line 5")
    assert await asyncio.wait_for(recorded.text(), 20) == "written"
    assert recorded.lines == ["x" * limits.log_line_bytes_max + CUT_MARK]
    await killed(recorded)
