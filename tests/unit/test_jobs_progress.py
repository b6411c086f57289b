"""How fast bytes come, and what is worth telling."""

from __future__ import annotations

import msgspec
import pytest

from llmvisor.control.api import Job, JobParams
from llmvisor.jobs.history import JobHistory
from llmvisor.jobs.progress import Pace, Rate

JOB = Job("j", "install", JobParams(source="starter"), "running", 0.0, "downloading", 0, 100, "bytes", created_at="now")


def test_rate_leaves_out_what_lay_there_before() -> None:
    """A download that goes on from its half is no faster for it."""
    rate = Rate()
    assert rate.add(0.0, 1_000_000) == 0.0
    assert rate.add(1.0, 1_000_100) == 100.0
    assert rate.add(2.0, 1_000_300) == 150.0


def test_rate_is_that_of_the_last_seconds() -> None:
    """What was fast a minute ago does not count; a stall shows, and a new beginning too."""
    rate = Rate()
    for second in range(10):
        rate.add(float(second), 1000 * second)
    assert rate.add(10.0, 10_000) == pytest.approx(1000)
    stalled = [rate.add(float(second), 10_000) for second in range(11, 25)]
    assert stalled[-1] == 0.0
    assert rate.add(25.0, 5) == 0.0


def test_pace_tells_every_step_and_few_of_the_rest() -> None:
    """Ten times a second for bytes; states, stages and errors at once. Written down every five seconds."""
    pace, before = Pace(), JOB
    told = saved = 0
    for tick in range(1000):
        job = msgspec.structs.replace(before, done=tick + 1)
        told += pace.tells(before, job, tick / 100)
        saved += pace.saves(before, job, tick / 100)
        before = job
    assert 90 <= told <= 101
    assert saved == 2
    for change in ({"stage": "verifying"}, {"state": "failed"}, {"error": "x"}, {"attempts": 2}, {"result": "y"}):
        job = msgspec.structs.replace(before, **change)
        assert pace.tells(before, job, 10.0)
        assert pace.saves(before, job, 10.0)
        before = job


async def test_history_numbers_only_grow_also_when_the_clock_steps_back() -> None:
    """And a client gets what came after its last event, or the last that there is."""
    history = JobHistory()
    for clock, done in ((1000, 1), (1000, 2), (5, 3), (2000, 4)):
        history.add(msgspec.structs.replace(JOB, done=done), at_least=clock)
    history.close()
    seen: dict[int | None, list[tuple[int, int]]] = {}
    for after in (None, 0, 1001, 2000):
        with history.watch(after) as events:
            seen[after] = [(event.id, event.job.done) async for event in events]
    assert seen[0] == [(1000, 1), (1001, 2), (1002, 3), (2000, 4)]
    assert seen[1001] == [(1002, 3), (2000, 4)]
    assert seen[None] == [(2000, 4)]
    assert seen[2000] == []  # it goes on
