"""Load progress: a reader gets what it can follow, a tick every change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader
from llmvisor_runtimes.load_progress import LoadReporter
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import LoadProgress, Report


class Reporting:
    """A reporter and the frames that it sent."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.reporter = LoadReporter(Pipes(read_fd=self.read_fd, write_fd=self.write_fd))

    def sent(self) -> list[Report]:
        os.close(self.write_fd)
        self.write_fd = -1
        return list(FrameReader(REPORT_DECODER).feed(os.read(self.read_fd, 65_536)))


@pytest.fixture
def reporting() -> Iterator[Reporting]:
    made = Reporting()
    yield made
    for fd in (made.read_fd, made.write_fd):
        if fd >= 0:
            os.close(fd)


def test_burst_of_progress_gives_few_frames_with_the_last_among_them(reporting: Reporting) -> None:
    """An engine that tells every tensor does not flood the pipe, and the end of each stage is told."""
    for done in range(5001):
        reporting.reporter.progress("weights", done, 5000, "layers")
    reporting.reporter.progress("warm up", 0, 0, "steps")
    sent = reporting.sent()
    assert sent[0] == LoadProgress("weights", 0, 5000, "layers")
    assert sent[-2:] == [LoadProgress("weights", 5000, 5000, "layers"), LoadProgress("warm up", 0, 0, "steps")]
    assert len(sent) < 100


def test_tick_counts_every_change_and_no_repetition(reporting: Reporting) -> None:
    """A load that says the same again and again makes no progress."""
    reporter = reporting.reporter
    assert reporter.tick(1).phase == "start"
    reporter.begin()
    assert (reporter.tick(1).phase, reporter.tick(1).step, reporter.loading) == ("load", 0, True)
    for done in (1, 2, 2, 2, 3):
        reporter.progress("weights", done, 9, "layers")
    assert reporter.tick(1).step == 3
    reporter.finish()
    assert (reporter.tick(1).phase, reporter.loading) == ("start", False)
