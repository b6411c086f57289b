"""The encoder's loop: take the planner's next batch, compute it, hand out what is complete."""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Progress, RequestError
from llmvisor_runtimes.encoding import Batch, BatchPlanner, Fault, Input, Job, Part
from llmvisor_runtimes.llamacpp import context as llama
from llmvisor_runtimes.llamacpp.encoder_context import Rows
from llmvisor_runtimes.llamacpp.encoder_model import EncoderModel
from llmvisor_runtimes.protocol import Embed, Embedding, Embeddings, Failed, Generate, Phase, Report, Score, Scores
from llmvisor_runtimes.split import split_embeddings

_NO_MEMORY = -2
"""What llama.cpp answers where it cannot allocate."""
_PROBABILITY_MIN = 1e-7
"""Nearer to 0 or 1 a probability has no logit worth the name."""


class Result(msgspec.Struct, frozen=True):
    """What came of one text."""

    tokens: int
    vector: bytes = b""
    score: float = 0.0


class Encoder:
    """Encodes texts of many requests together with one model.

    `encode`, `step` and `delay_seconds` belong to one thread, `prepare` to another; `cancel`, `pause`, `resume` and
    `progress` may be called from any.
    """

    def __init__(self, model: EncoderModel) -> None:
        self._model = model
        self._context = model.context
        self._planner: BatchPlanner[list[int], Result] = BatchPlanner(
            tokens_max=model.batch_tokens,
            inputs_max=limits.encoder_sequences_max,
            # Texts of a batch lie one behind the other: there is no padding that would cost anything.
            padding_share_max=1.0,
        )
        self._requests: dict[int, Embed | Score] = {}
        self._cancelled: set[int] = set()
        self._computing: frozenset[int] = frozenset()
        """Requests that the batch under way is for."""
        self._tokens_of: dict[int, int] = {}
        """Tokens of all pairs of a request for scores."""
        self._ready: list[Report] = []
        self._phase: Phase = "idle"
        self._steps = 0
        self._tokens = 0
        self._tokens_per_second = 0.0

    # ------------------------------------------------------------------------------------------------- prompt thread

    def prepare(self, request: Embed | Score) -> list[list[int]]:
        """Each text's or pair's tokens. Raises `RequestError`."""
        text, ranks = self._model.text, self._model.pooling == "rank"
        if isinstance(request, Score):
            if not ranks:
                raise _unsupported("this model gives embeddings, not scores of pairs")
            return [
                text.pair(place, query, document, truncate=request.truncate)
                for place, (query, document) in enumerate(request.pairs)
            ]
        if ranks:
            raise _unsupported("this model scores pairs of texts, it gives no embeddings")
        for kind in request.kinds:
            if kind != "dense":
                raise _unsupported(f"this model gives dense embeddings, not {kind} ones")
        return [text.text(place, each, truncate=request.truncate) for place, each in enumerate(request.inputs)]

    # --------------------------------------------------------------------------------------------- from other threads

    def cancel(self, id: int) -> None:
        """End a request in the next step; a batch that is for nobody else is aborted."""
        if id not in self._requests:
            return
        self._cancelled.add(id)
        computing = self._computing
        if computing and computing <= self._cancelled:
            self._context.abort()

    def pause(self, id: int) -> None:
        """Nothing: what a request may hold of results is bounded by the planner."""

    def resume(self, id: int) -> None:
        """Nothing, as `pause`."""

    def progress(self) -> Progress:
        return Progress(
            step=self._steps + self._context.nodes_computed,
            phase=self._phase,
            active=len(self._computing),
            waiting=max(0, len(self._requests) - len(self._computing)),
            tokens=self._tokens,
        )

    # ---------------------------------------------------------------------------------------------- the engine's loop

    def generate(self, _request: Generate, _prompt: list[int], _constraint: object = None) -> None:
        """Refuse. Raises `RequestError`."""
        raise self.refusal()

    def refusal(self) -> RequestError:
        """What there is to say to whoever wants text of this model."""
        what = "scores pairs of texts" if self._model.pooling == "rank" else "gives embeddings"
        return _unsupported(f"this model {what}, it generates no text")

    def encode(self, request: Embed | Score, texts: list[list[int]]) -> None:
        """Take a request in, as `prepare` has made it."""
        self._requests[request.id] = request
        self._tokens_of[request.id] = sum(map(len, texts))
        job = Job(
            id=request.id,
            inputs=[Input(key=tuple(tokens), length=len(tokens), payload=tokens) for tokens in texts],
            lane=request.lane,
            client=request.client,
            whole=isinstance(request, Score),
        )
        self._hand_out(self._planner.submit(job))

    def delay_seconds(self) -> float | None:
        """0 where a step has something to do, None where it has nothing until a call comes."""
        return 0 if self._planner or self._cancelled or self._ready else None

    def step(self) -> list[Report]:
        """Compute one batch; gives what became complete with it."""
        self._end_cancelled()
        batch = self._planner.next_batch()
        if batch is not None:
            self._phase = "prefill"
            self._compute(batch)
        if not self._planner:
            self._phase = "idle"
        reports, self._ready = self._ready, []
        return reports

    def close(self) -> None:
        """Nothing of its own to free."""

    def _compute(self, batch: Batch[list[int]]) -> None:
        texts = batch.inputs
        self._computing = frozenset(id for unit in batch.units for id in unit.askers)
        started = time.perf_counter()
        status = self._encode(texts)
        self._computing = frozenset()
        self._steps += 1
        if status != llama.DECODED:
            self._recover(batch, status)
            return
        self._tokens += batch.tokens
        self._observe(batch.tokens / max(1e-6, time.perf_counter() - started))
        rows = self._context.rows(len(texts))
        if not np.isfinite(rows).all():
            self._fail(self._planner.failed(batch, ArithmeticError("the model gave something that is no number")))
            return
        self._hand_out(self._planner.done(batch, self._results(texts, rows)))

    def _encode(self, texts: list[list[int]]) -> int:
        """`ABORTED` only where nobody wants the batch any more."""
        while True:
            self._context.clear_abort()
            # A cancellation that came before the flag was cleared must not be lost.
            if self._computing <= self._cancelled:
                return llama.ABORTED
            status = self._context.encode(texts)
            # What was to abort the batch before may come a moment late, and meet this one.
            if status != llama.ABORTED or self._computing <= self._cancelled:
                return status

    def _observe(self, tokens_per_second: float) -> None:
        """Nobody who waits for a few texts shall wait for long until a batch of the bulk lane is over."""
        before = self._tokens_per_second or tokens_per_second
        self._tokens_per_second = (before + tokens_per_second) / 2
        most = int(self._tokens_per_second * limits.encoder_bulk_seconds)
        self._planner.bulk_tokens_max = max(limits.encoder_bulk_tokens_min, most)

    def _results(self, texts: list[list[int]], rows: Rows) -> list[Result]:
        if self._model.pooling == "rank":
            scores = rows[:, 0].astype(np.float64)
            if self._model.gives_probabilities:
                likely = np.clip(scores, _PROBABILITY_MIN, 1 - _PROBABILITY_MIN)
                scores = np.log(likely / (1 - likely))
            return [Result(len(tokens), score=float(score)) for tokens, score in zip(texts, scores, strict=True)]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = (rows / np.where(norms > 0, norms, 1)).astype("<f4")
        return [Result(len(tokens), vector=row.tobytes()) for tokens, row in zip(texts, unit, strict=True)]

    def _recover(self, batch: Batch[list[int]], status: int) -> None:
        """A batch was not computed: whoever was not cancelled is tried again, in smaller batches."""
        error = RuntimeError(f"llama.cpp failed with {status} for {len(batch.units)} texts of {batch.tokens} tokens")
        if status == llama.ABORTED:
            self._end_cancelled()
        else:
            print(error, file=sys.stderr, flush=True)
        lacks_memory = status in {llama.NO_ROOM, _NO_MEMORY}
        recover = self._planner.out_of_memory if lacks_memory else self._planner.failed
        self._fail(recover(batch, error))

    # ---------------------------------------------------------------------------------------------------- handing out

    def _hand_out(self, parts: list[Part[Result]]) -> None:
        for part in parts:
            if isinstance(self._requests[part.id], Score):
                scores = [result.score for result in part.results]
                self._ready.append(Scores(part.id, scores, self._tokens_of[part.id]))
            else:
                items = [Embedding(result.tokens, dense=result.vector) for result in part.results]
                self._ready += split_embeddings(Embeddings(part.id, part.first, items, part.last))
            if part.last:
                self._forget(part.id)

    def _fail(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._ready.append(Failed(fault.id, "internal_error", str(fault.error)))
            self._forget(fault.id)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            id = self._cancelled.pop()
            if id in self._requests:
                self._planner.cancel(id)
                self._ready.append(Embeddings(id, 0, [], last=True))
                self._forget(id)

    def _forget(self, id: int) -> None:
        del self._requests[id], self._tokens_of[id]


def _unsupported(message: str) -> RequestError:
    return RequestError("unsupported_operation", message, "model")
