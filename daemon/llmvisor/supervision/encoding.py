"""Requests for embeddings and scores that run in a worker: what comes is checked, and collected until it is whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.services.service import Embedded, EmbeddingRequest, Scored, ScoringRequest
from llmvisor.supervision.stream import Awaited
from llmvisor_runtimes.protocol import (
    Command,
    Embed,
    Embedding,
    EmbeddingKind,
    Embeddings,
    ProtocolViolation,
    Score,
    Scores,
)

_FLOAT_BYTES = 4


class EmbeddingCall(Awaited[Embedded]):
    """Texts whose vectors are wanted; they come in one frame or in many, in the order of the texts."""

    kind = "embed"

    def __init__(self, id: int, request: EmbeddingRequest, *, leave: Callable[[int], None]) -> None:
        super().__init__(id, leave=leave, asked=request)
        self._request = request
        self._items: list[Embedding] = []
        self._bytes = 0

    def command(self) -> Command:
        request = self._request
        return Embed(
            id=self.id,
            request_id=request.request_id,
            inputs=request.inputs,
            kinds=request.kinds,
            truncate=request.truncate,
            lane=request.lane,
            client=request.terms.client,
        )

    def suspend(self) -> None:
        """The next worker computes all of it: vectors of two workers may differ by float noise."""
        self._items, self._bytes = [], 0

    def take(self, report: Embeddings) -> bool:
        """Take in a frame; True with the last one. Raises `ProtocolViolation` for what cannot be."""
        count = len(self._items) + len(report.items)
        asked = len(self._request.inputs)
        if report.first != len(self._items) or count > asked or report.last != (count == asked):
            raise ProtocolViolation(
                f"{len(report.items)} embeddings from {report.first} on for the request {self.id} of {asked} texts, "
                f"after {len(self._items)}"
            )
        for item in report.items:
            check_vectors(item, self._request.kinds)
            self._bytes += len(item.dense) + len(item.colbert)
        self._items += report.items
        self.progress += len(report.items)
        if self._bytes > limits.embeddings_bytes_max:
            # Nobody could be sent that much at once: keep nothing of it, and let the worker do something else.
            self._items = []
            self.fail(InvalidRequest(f"input: the vectors are over {limits.embeddings_bytes_max} bytes", param="input"))
            if not report.last:
                self._leave(self.id)
        elif report.last:
            self.succeed(Embedded(items=self._items, queue_ms=self.queue_ms, load_ms=self.load_ms))
        return report.last


class ScoringCall(Awaited[Scored]):
    """Pairs of texts whose scores are wanted."""

    kind = "score"

    def __init__(self, id: int, request: ScoringRequest, *, leave: Callable[[int], None]) -> None:
        super().__init__(id, leave=leave, asked=request)
        self._request = request

    def command(self) -> Command:
        request = self._request
        return Score(
            id=self.id,
            request_id=request.request_id,
            pairs=request.pairs,
            truncate=request.truncate,
            lane=request.lane,
            client=request.terms.client,
        )

    def take(self, report: Scores) -> bool:
        """Take in the answer. Raises `ProtocolViolation` where it is not one score for each pair."""
        if len(report.scores) != len(self._request.pairs) or report.tokens < 0:
            raise ProtocolViolation(
                f"{len(report.scores)} scores for the {len(self._request.pairs)} pairs of the request {self.id}"
            )
        self.succeed(Scored(scores=report.scores, tokens=report.tokens, queue_ms=self.queue_ms, load_ms=self.load_ms))
        return True


def check_vectors(item: Embedding, kinds: Sequence[EmbeddingKind]) -> None:
    """Raises `ProtocolViolation` where the vectors of a text are not of the kinds asked for, or no whole floats."""
    if ("dense" in kinds) != bool(item.dense) or len(item.dense) % _FLOAT_BYTES or item.tokens < 0:
        raise ProtocolViolation(f"a dense vector of {len(item.dense)} bytes, asked for: {', '.join(kinds)}")
    vectors = item.colbert_vectors
    whole = vectors > 0 and len(item.colbert) % (vectors * _FLOAT_BYTES) == 0
    if bool(item.colbert) != bool(vectors) or (vectors and not whole) or (vectors and "colbert" not in kinds):
        raise ProtocolViolation(f"{vectors} colbert vectors in {len(item.colbert)} bytes")
    if item.sparse and ("sparse" not in kinds or min(item.sparse) < 0):
        raise ProtocolViolation("sparse weights that nobody asked for, or of no token")
