"""Progress of a fetch: few lines, and never an old one for long."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import suppress

import msgspec
import pytest
from tests.support.polling import eventually

from llmvisor.fetch import limits
from llmvisor.fetch.pipes import Reporter
from llmvisor.fetch.protocol import FetchProgress, Report, Unchanged

REPORT = msgspec.json.Decoder(Report)


class Pipe:
    """What has come out of a reporter, and the time that it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.reporter = Reporter(self.writing, lambda: self.now)
        self._data = b""

    @property
    def said(self) -> list[object]:
        with suppress(BlockingIOError):
            self._data += os.read(self.reading, 1 << 20)
        return [REPORT.decode(line) for line in self._data.splitlines()]


@pytest.fixture
def pipe() -> Generator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)
    os.close(pipe.writing)


async def test_progress_that_came_too_soon_is_told_a_little_later(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Two words at once, then none: the download stalls. Result: the second one is what stands there."""
    pipe.reporter.progress(FetchProgress("downloading", 0, 100))
    pipe.reporter.progress(FetchProgress("downloading", 40, 100))
    pipe.reporter.progress(FetchProgress("downloading", 70, 100))
    assert pipe.said == [FetchProgress("downloading", 0, 100)]
    pipe.now += limits.fetch_progress_seconds
    monkeypatch.setattr(limits, "fetch_progress_seconds", 0.01)
    telling = asyncio.create_task(pipe.reporter.keep_up())
    await eventually(lambda: len(pipe.said) == 2)
    telling.cancel()
    assert pipe.said[-1] == FetchProgress("downloading", 70, 100)


def test_stages_that_go_to_and_fro_keep_to_the_bound(pipe: Pipe) -> None:
    """The first word of a stage goes out at once; a thousand small files are no thousand lines."""
    for number in range(1000):
        pipe.reporter.progress(FetchProgress("downloading", number))
        pipe.reporter.progress(FetchProgress("verifying", number))
    assert pipe.said == [FetchProgress("downloading", 0), FetchProgress("verifying", 0)]


def test_nothing_comes_after_the_last_line(pipe: Pipe) -> None:
    """A thread that is still at it may say what it likes."""
    pipe.reporter.progress(FetchProgress("copying", 1))
    pipe.reporter.progress(FetchProgress("copying", 2))
    pipe.reporter.end(Unchanged("r1"))
    pipe.now += 10
    pipe.reporter.progress(FetchProgress("verifying", 3))
    assert pipe.said == [FetchProgress("copying", 1), Unchanged("r1")]
