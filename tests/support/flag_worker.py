"""Drives a worker of the flag backend over its pipes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tests.support.worker_client import Worker

from llmvisor_runtimes.protocol import (
    Embed,
    Embedding,
    EmbeddingKind,
    Embeddings,
    Failed,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    ModelInfo,
    ModelOptions,
    Score,
    Scores,
)

LOAD_SECONDS = 200.0
"""Importing torch takes seconds, many of them on a busy machine."""
ANSWER_SECONDS = 60.0


class FlagWorker:
    """One worker and what it answered."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.info: ModelInfo
        self.stages: list[str] = []
        """Of the load, in order."""
        self.ended: list[int] = []
        """Ids in the order in which they ended."""
        self.frames: dict[int, int] = {}
        """Frames that answered each id."""
        self._ids = 0
        self._answers: dict[int, list[Embedding] | Scores | Failed] = {}

    def load(self, folder: Path, **options: object) -> Loaded | LoadFailed:
        """Load a folder with these options of its own."""
        raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in options.items()}
        assert isinstance(self.worker.receive(LOAD_SECONDS), Hello)
        self.worker.send(Load("tiny", str(folder), ModelOptions(n_threads=1, options=raw)))
        deadline = time.monotonic() + LOAD_SECONDS
        while not isinstance(report := self.worker.receive(deadline - time.monotonic()), Loaded | LoadFailed):
            if isinstance(report, LoadProgress):
                self.stages.append(report.stage)
        if isinstance(report, Loaded):
            self.info = report.info
        return report

    def embedding(
        self, *inputs: str | list[int], kinds: Iterable[EmbeddingKind] = ("dense",), **fields: object
    ) -> Embed:
        """A request, not yet sent."""
        self._ids += 1
        return msgspec.structs.replace(Embed(self._ids, f"req-{self._ids}", list(inputs), list(kinds)), **fields)

    def scoring(self, pairs: list[tuple[str, str]], **fields: object) -> Score:
        """A request, not yet sent."""
        self._ids += 1
        return msgspec.structs.replace(Score(self._ids, f"req-{self._ids}", pairs), **fields)

    def collect(self, ids: Iterable[int]) -> dict[int, list[Embedding] | Scores | Failed]:
        """Wait for these requests; gives all answers so far, the items of frames that follow each other joined."""
        open_ids, answers = set(ids), self._answers
        deadline = time.monotonic() + ANSWER_SECONDS
        while open_ids:
            report = self.worker.receive(max(0.0, deadline - time.monotonic()))
            if not isinstance(report, Embeddings | Scores | Failed):
                continue
            self.frames[report.id] = self.frames.get(report.id, 0) + 1
            if isinstance(report, Embeddings):
                items = answers.setdefault(report.id, [])
                assert isinstance(items, list)
                assert report.first in {len(items), 0}, "ranges follow each other; a cancelled request ends with none"
                items += report.items
                if not report.last:
                    continue
            else:
                answers[report.id] = report
            open_ids.discard(report.id)
            self.ended.append(report.id)
        return answers

    def embed(
        self, *inputs: str | list[int], kinds: Iterable[EmbeddingKind] = ("dense",), **fields: object
    ) -> list[Embedding]:
        """The embeddings of these inputs."""
        request = self.embedding(*inputs, kinds=kinds, **fields)
        self.worker.send(request)
        answer = self.collect([request.id])[request.id]
        assert isinstance(answer, list), answer
        return answer

    def score(self, pairs: list[tuple[str, str]], **fields: object) -> Scores:
        """The scores of these pairs."""
        request = self.scoring(pairs, **fields)
        self.worker.send(request)
        answer = self.collect([request.id])[request.id]
        assert isinstance(answer, Scores), answer
        return answer

    def refusal(self, request: Embed | Score) -> Failed:
        """How a request is refused."""
        self.worker.send(request)
        answer = self.collect([request.id])[request.id]
        assert isinstance(answer, Failed), answer
        return answer


@contextmanager
def flag_worker(folder: Path, **options: object) -> Generator[FlagWorker]:
    """A worker that has loaded this folder."""
    # What OpenMP goes by stands in the log, then.
    with Worker("flag", env={"OMP_DISPLAY_ENV": "TRUE"}) as worker:
        driven = FlagWorker(worker)
        loaded = driven.load(folder, **options)
        assert isinstance(loaded, Loaded), f"{loaded}\n{worker.log()}"
        yield driven
