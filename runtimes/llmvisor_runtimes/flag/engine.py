"""The loop of an encoder: the planner's next batch, computed, and what is complete reported. Knows no engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from llmvisor_runtimes.backend import Progress
from llmvisor_runtimes.encoding import Batch, BatchPlanner, Fault, Input, Job, Part
from llmvisor_runtimes.flag.pace import Pace, batch_seconds
from llmvisor_runtimes.flag.tokens import Tokenized
from llmvisor_runtimes.protocol import Embed, Embedding, Embeddings, Failed, Phase, Report, Score, Scores
from llmvisor_runtimes.split import split_embeddings

Result = Embedding | float
"""What one input gives: vectors, or a score."""


class Encoder(Protocol):
    """A loaded model."""

    passes: int
    """Counts layers computed so far, also in the middle of a batch."""

    def compute(self, inputs: Sequence[Tokenized]) -> list[Result]:
        """One forward pass. Raises MemoryError where it does not fit, anything else where it cannot be computed."""
        ...

    def set_threads(self, count: int) -> None: ...


def as_inputs(texts: Sequence[Tokenized]) -> list[Input[Tokenized]]:
    """The inputs of a job; of 100,000 texts that takes a moment, which the engine thread has not."""
    return [Input(text.key, len(text.ids), text) for text in texts]


class FlagEngine:
    """Requests in, reports out, batch by batch.

    The engine thread calls everything but `cancel`, `set_threads` and `progress`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        clock: Callable[[], float],
        tokens_max: int,
        inputs_max: int,
        padding_free_tokens: int,
    ) -> None:
        self._encoder = encoder
        self._clock = clock
        self._tokens_max = tokens_max
        self._pace = Pace()
        self._planner: BatchPlanner[Tokenized, Result] = BatchPlanner(
            tokens_max=tokens_max, inputs_max=inputs_max, padding_free_tokens=padding_free_tokens
        )
        self._score_tokens: dict[int, int] = {}
        """Tokens of each request that is answered with scores."""
        self._ready: list[Report] = []
        self._cancelled: deque[int] = deque()
        self._threads: int | None = None
        self._interactive_at = float("-inf")
        self._batches = 0
        self._tokens = 0
        self._active = 0
        self._waiting = 0
        self._phase: Phase = "idle"

    def warm_up(self, inputs: list[Tokenized]) -> None:
        """Compute inputs twice, and learn how long that takes the second time."""
        self._encoder.compute(inputs)
        began = self._clock()
        self._encoder.compute(inputs)
        self._pace.measured(sum(len(input.ids) for input in inputs), self._clock() - began)

    def encode(self, request: Embed | Score, inputs: list[Input[Tokenized]]) -> None:
        """Take a request in, as `as_inputs` gives it."""
        if request.lane == "interactive":
            self._interactive_at = self._clock()
        is_score = isinstance(request, Score)
        if is_score:
            self._score_tokens[request.id] = sum(input.length for input in inputs)
        job = Job(
            request.id,
            inputs,
            lane=request.lane,
            client=request.client,
            whole=is_score,
        )
        self._answer(self._planner.submit(job))

    def cancel(self, id: int) -> None:
        """End a request with the next step. Any thread may call it."""
        self._cancelled.append(id)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next batch on. Any thread may call it."""
        self._threads = count

    def delay_seconds(self) -> float | None:
        """0 while there is something to do."""
        return 0 if self._ready or self._cancelled or self._planner else None

    def step(self) -> list[Report]:
        """Compute one batch, and give what is complete with it."""
        self._end_cancelled()
        self._limit_batches()
        if (batch := self._planner.next_batch()) is not None:
            self._phase = "prefill"
            self._active, self._waiting = len(batch.units), self._planner.jobs
            self._compute(batch)
            self._phase = "idle"
            self._active, self._waiting = 0, self._planner.jobs
        reports, self._ready = self._ready, []
        return reports

    def progress(self) -> Progress:
        """Any thread may call it."""
        return Progress(
            step=self._batches + self._encoder.passes,
            phase=self._phase,
            active=self._active,
            waiting=self._waiting,
            tokens=self._tokens,
        )

    def _compute(self, batch: Batch[Tokenized]) -> None:
        if self._threads is not None:
            threads, self._threads = self._threads, None
            self._encoder.set_threads(threads)
        began = self._clock()
        try:
            results = self._encoder.compute(batch.inputs)
        except MemoryError as error:
            self._fail(self._planner.out_of_memory(batch, error))
        except Exception as error:  # noqa: BLE001 - whatever a library raises fails an input, once it is found out which
            self._fail(self._planner.failed(batch, error))
        else:
            self._pace.measured(batch.padded_tokens, self._clock() - began)
            self._tokens += batch.tokens
            self._answer(self._planner.done(batch, results))
        self._batches += 1

    def _limit_batches(self) -> None:
        """Let batches take no longer than suits those who may come."""
        if not self._pace.tokens_per_second:
            return
        since = self._clock() - self._interactive_at
        interactive = self._pace.tokens_in(batch_seconds(bulk=False, since_interactive_seconds=since))
        bulk = self._pace.tokens_in(batch_seconds(bulk=True, since_interactive_seconds=since))
        self._planner.interactive_tokens_max = interactive
        self._planner.bulk_tokens_max = bulk

    def _end_cancelled(self) -> None:
        while self._cancelled:
            id = self._cancelled.popleft()
            if self._planner.cancel(id):
                self._score_tokens.pop(id, None)
                self._ready.append(Embeddings(id, 0, [], last=True))

    def _answer(self, parts: Sequence[Part[Result]]) -> None:
        for part in parts:
            tokens = self._score_tokens.pop(part.id, None)
            if tokens is not None:
                scores = [result for result in part.results if isinstance(result, float)]
                self._ready.append(Scores(part.id, scores, tokens))
                continue
            items = [result for result in part.results if isinstance(result, Embedding)]
            self._ready += split_embeddings(Embeddings(part.id, part.first, items, part.last))

    def _fail(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self._score_tokens.pop(fault.id, None)
            message = str(fault.error) or type(fault.error).__name__
            self._ready.append(Failed(fault.id, "internal_error", f"an input cannot be computed: {message}"))
