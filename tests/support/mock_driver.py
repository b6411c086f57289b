"""Drives the mock backend by hand, with a clock of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.worker_client import Reply, load_of

from llmvisor_runtimes import mock_text
from llmvisor_runtimes.mock import MockBackend
from llmvisor_runtimes.protocol import Failed, Generate, ModelInfo, Step


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Mock:
    """A loaded mock, its clock, and what it said."""

    def __init__(self, *, parallel: int = 4, **options: Any) -> None:
        self.clock = Clock()
        self.backend = MockBackend(clock=self.clock, sleep=self.clock.sleep)
        self.progress: list[tuple[str, int, int, str]] = []
        load = load_of(parallel=parallel, **options)
        self.info: ModelInfo = self.backend.load(load, self._on_progress)
        self.replies: dict[int, Reply] = {}
        self.steps: list[Step] = []

    def _on_progress(self, stage: str, done: int, total: int, unit: str) -> None:
        self.progress.append((stage, done, total, unit))

    def take(self, *requests: Generate) -> None:
        for request in requests:
            self.replies[request.id] = Reply()
            tokens = self.backend.tokenize(request.prompt, add_special=True, parse_special=True)
            self.backend.generate(request, tokens)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for report in self.backend.step():
                if isinstance(report, Failed):
                    self.replies[report.id].failed = report
                    continue
                assert isinstance(report, Step)
                self.steps.append(report)
                for delta in report.deltas:
                    self.replies[delta.id].deltas.append(delta)
                for done in report.done:
                    assert self.replies[done.id].done is None
                    self.replies[done.id].done = done

    def run(self, *requests: Generate) -> Reply:
        """Serve requests until nothing is to do; gives the first one's reply."""
        self.take(*requests)
        while (delay := self.backend.delay_seconds()) is not None:
            self.clock.now += delay
            self.step()
        return self.replies[requests[0].id]


def numbers(tokens: Iterable[int]) -> list[int]:
    """The numbers of reply tokens, which show gaps and repeats."""
    return [(token - mock_text.FIRST_WORD) // 16 for token in tokens]


def reply_of(request: Generate, **options: Any) -> Reply:
    """What a fresh mock replies."""
    return Mock(**options).run(request)
