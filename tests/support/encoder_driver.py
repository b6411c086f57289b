"""Drives the llama.cpp backend as an encoder in this process, and keeps what it reports."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes.llamacpp import LlamaCppBackend
from llmvisor_runtimes.llamacpp.encoder_context import EncoderContext
from llmvisor_runtimes.llamacpp.encoder_model import EncoderModel
from llmvisor_runtimes.protocol import (
    Embed,
    Embedding,
    Embeddings,
    Failed,
    Lane,
    Load,
    ModelInfo,
    ModelOptions,
    Score,
    Scores,
)

STEPS_MAX = 20_000
EXACT: dict[str, object] = {"flash_attn": "off"}
"""Flash attention adds 16-bit floats on CPUs: 0.0005 of noise in a vector."""
TEXTS = ["cat", "a dog barks", "the moon is far", "bread and butter", "z", "what a long text this is for a tiny model"]
Vectors = NDArray[np.float32]


def _quiet(_stage: str, _done: int, _total: int, _unit: object) -> None:
    """Progress that nobody looks at."""


class EncoderDriver:
    """One loaded model; `run` steps until there is nothing left to do."""

    def __init__(self, path: Path, options: ModelOptions) -> None:
        self.backend = LlamaCppBackend()
        self.info: ModelInfo = self.backend.load(Load("tiny", str(path), options), _quiet)
        self.items: dict[int, list[Embedding]] = {}
        self.scored: dict[int, Scores] = {}
        self.failed: dict[int, Failed] = {}
        self.ended: list[int] = []
        """Request ids in the order in which they ended."""
        self.steps = 0
        self._ids = 0

    def embed(
        self, *inputs: str | list[int], truncate: bool = False, lane: Lane = "interactive", client: str = ""
    ) -> int:
        """Hand texts in; gives the request's id."""
        self._ids += 1
        request = Embed(self._ids, "r", list(inputs), ["dense"], truncate=truncate, lane=lane, client=client)
        self.backend.encode(request, self.backend.prepare(request))
        self.items[self._ids] = []
        return self._ids

    def score(self, query: str, *documents: str, truncate: bool = False) -> int:
        """Hand pairs in; gives the request's id."""
        self._ids += 1
        request = Score(self._ids, "r", [(query, document) for document in documents], truncate=truncate)
        self.backend.encode(request, self.backend.prepare(request))
        return self._ids

    def step(self) -> None:
        """One step of the engine."""
        self.steps += 1
        for report in self.backend.step():
            if isinstance(report, Embeddings):
                assert report.first in {0, len(self.items[report.id])}, "embeddings come in order"
                self.items[report.id] += report.items
                ended = report.last
            elif isinstance(report, Scores):
                self.scored[report.id], ended = report, True
            else:
                assert isinstance(report, Failed)
                self.failed[report.id], ended = report, True
            if ended:
                assert report.id not in self.ended, "nothing comes after the end"
                self.ended.append(report.id)

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Step until nothing is left, or until a condition holds."""
        for _ in range(STEPS_MAX):
            if until() if until else self.backend.delay_seconds() is None:
                return
            assert self.backend.delay_seconds() == 0, "the engine has stopped before the condition held"
            self.step()
        raise AssertionError("the engine does not come to an end")

    def vectors(self, id: int) -> Vectors:
        """What has come of a request, one row for each text."""
        return np.array([np.frombuffer(item.dense, dtype="<f4") for item in self.items[id]])

    def encode(self, *inputs: str | list[int]) -> Vectors:
        """Run one request alone."""
        id = self.embed(*inputs)
        self.run()
        return self.vectors(id)

    def scores(self, query: str, *documents: str) -> list[float]:
        """Run one request alone."""
        id = self.score(query, *documents)
        self.run()
        return self.scored[id].scores

    def close(self) -> None:
        self.backend.close()


@contextmanager
def encoder_driver(path: Path, *, own: dict[str, object] | None = None, **options: object) -> Generator[EncoderDriver]:
    """A driver of a model loaded with these `ModelOptions`, one thread unless they say otherwise."""
    driver = EncoderDriver(path, model_options(own=own, **options))
    try:
        yield driver
    finally:
        driver.close()


def model_options(*, own: dict[str, object] | None = None, **options: object) -> ModelOptions:
    """Options with those that only llama.cpp knows (`own`), one thread unless they say otherwise."""
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in (own or {}).items()}
    return msgspec.structs.replace(msgspec.convert({"n_threads": 1, **options}, ModelOptions), options=raw)


def alike(left: Vectors, right: Vectors) -> Sequence[float]:
    """Cosines of rows of the same number."""
    return [float(one @ other) for one, other in zip(left, right, strict=True)]


def context_of(driver: EncoderDriver) -> EncoderContext:
    """The context inside, for tests that make it fail."""
    model = driver.backend._model  # pyright: ignore[reportPrivateUsage]
    assert isinstance(model, EncoderModel)
    return model.context
