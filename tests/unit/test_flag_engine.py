"""The loop of the flag backend with an encoder that is none: what happens when memory is out or an input is bad."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmvisor_runtimes import limits
from llmvisor_runtimes.encoding import Input
from llmvisor_runtimes.flag.engine import FlagEngine, Result, as_inputs
from llmvisor_runtimes.flag.pace import Pace, batch_seconds
from llmvisor_runtimes.flag.tokens import Tokenized
from llmvisor_runtimes.protocol import Embed, Embedding, Embeddings, Failed, Lane, Report, Score, Scores
from llmvisor_runtimes.split import split_embeddings

BAD = 666
"""An input with this token cannot be computed."""


class FakeEncoder:
    """Gives each input's tokens back, and takes time by their number."""

    def __init__(self, *, fits_tokens: int = 1_000_000, tokens_per_second: float = 1000.0) -> None:
        self.passes = 0
        self.now = 0.0
        self.threads: list[tuple[int, int]] = []
        """Counts, and how many batches had been computed before each."""
        self.batches: list[list[list[int]]] = []
        self._fits_tokens = fits_tokens
        self._tokens_per_second = tokens_per_second

    def compute(self, inputs: Sequence[Tokenized]) -> list[Result]:
        padded = len(inputs) * max(len(input.ids) for input in inputs)
        self.now += padded / self._tokens_per_second
        self.batches.append([input.ids for input in inputs])
        if padded > self._fits_tokens:
            raise MemoryError("no room")
        if any(BAD in input.ids for input in inputs):
            raise IndexError("no such token")
        return [
            Embedding(len(input.ids), dense=bytes(input.ids)) if input.kinds else float(input.ids[0])
            for input in inputs
        ]

    def set_threads(self, count: int) -> None:
        self.threads.append((count, len(self.batches)))


def engine_of(encoder: FakeEncoder, *, tokens_max: int = 4096, inputs_max: int = 64) -> FlagEngine:
    return FlagEngine(
        encoder, clock=lambda: encoder.now, tokens_max=tokens_max, inputs_max=inputs_max, padding_free_tokens=0
    )


def text(*ids: int) -> Input[Tokenized]:
    return as_inputs([Tokenized(list(ids), kinds=("dense",))])[0]


def pair(*ids: int) -> Input[Tokenized]:
    return as_inputs([Tokenized(list(ids))])[0]


def embed(id: int, lane: Lane = "interactive") -> Embed:
    return Embed(id, f"req-{id}", [], ["dense"], lane=lane)


def run(engine: FlagEngine) -> list[Report]:
    reports: list[Report] = []
    while engine.delay_seconds() == 0:
        reports += engine.step()
    assert engine.progress().phase == "idle"
    return reports


def test_engine_answers_embeddings_and_scores() -> None:
    """Vectors come as embeddings, numbers as scores with the tokens of all pairs."""
    engine = engine_of(FakeEncoder())
    engine.encode(embed(1), [text(1, 2), text(3)])
    engine.encode(Score(2, "req-2", []), [pair(7, 8), pair(9)])
    reports = run(engine)
    joined = [item.dense for report in reports if isinstance(report, Embeddings) for item in report.items]
    assert joined == [bytes([1, 2]), bytes([3])]
    assert [report for report in reports if isinstance(report, Scores)] == [Scores(2, [7.0, 9.0], 3)]


def test_engine_answers_requests_without_inputs() -> None:
    """Nothing asked, nothing given, but an answer."""
    engine = engine_of(FakeEncoder())
    engine.encode(embed(1), [])
    engine.encode(Score(2, "req-2", []), [])
    assert run(engine) == [Embeddings(1, 0, [], last=True), Scores(2, [], 0)]


def test_out_of_memory_costs_a_retry_and_no_request() -> None:
    """A batch that does not fit is halved; later batches are made no larger than what fits."""
    encoder = FakeEncoder(fits_tokens=40)
    engine = engine_of(encoder)
    for id in range(1, 33):
        engine.encode(embed(id), [text(id, 1, 1, 1)])
    reports = run(engine)
    assert sorted(report.id for report in reports if isinstance(report, Embeddings)) == list(range(1, 33))
    assert not [report for report in reports if isinstance(report, Failed)]
    before = len(encoder.batches)
    for id in range(101, 121):
        engine.encode(embed(id), [text(id, 1, 1, 1)])
    run(engine)
    assert all(4 * len(batch) <= 40 for batch in encoder.batches[before:])


def test_input_that_never_fits_fails_with_the_reason() -> None:
    """Its request is told; the next one is served."""
    engine = engine_of(FakeEncoder(fits_tokens=3))
    engine.encode(embed(1), [text(1, 2, 3, 4)])
    engine.encode(embed(2), [text(1, 2)])
    reports = run(engine)
    assert [(report.id, report.kind) for report in reports if isinstance(report, Failed)] == [(1, "internal_error")]
    assert "no room" in next(report.message for report in reports if isinstance(report, Failed))
    assert [report.id for report in reports if isinstance(report, Embeddings)] == [2]


def test_bad_input_fails_its_own_request_alone() -> None:
    """Everyone else in its batch is answered."""
    engine = engine_of(FakeEncoder())
    for id in range(1, 9):
        engine.encode(embed(id), [text(BAD if id == 5 else id, 1)])
    reports = run(engine)
    assert [report.id for report in reports if isinstance(report, Failed)] == [5]
    assert sorted(report.id for report in reports if isinstance(report, Embeddings)) == [1, 2, 3, 4, 6, 7, 8]


def test_cancelled_request_ends_with_an_empty_answer_and_is_not_computed() -> None:
    """So does one of scores; an unknown id is ignored."""
    encoder = FakeEncoder()
    engine = engine_of(encoder)
    engine.encode(embed(1), [text(1)])
    engine.encode(Score(2, "req-2", []), [pair(2)])
    for id in (1, 2, 99):
        engine.cancel(id)
    assert engine.delay_seconds() == 0
    assert run(engine) == [Embeddings(1, 0, [], last=True), Embeddings(2, 0, [], last=True)]
    assert encoder.batches == []


def test_thread_count_changes_before_the_next_batch() -> None:
    """What another thread asks for is done between batches, by the engine's own, once."""
    encoder = FakeEncoder()
    engine = engine_of(encoder, inputs_max=1)
    engine.encode(embed(1), [text(1), text(2), text(3)])
    engine.step()
    engine.set_threads(3)
    assert encoder.threads == []
    run(engine)
    assert encoder.threads == [(3, 1)]


def test_bulk_batches_are_short_while_interactive_requests_come() -> None:
    """A bulk job takes large batches while it is alone, and small ones next to somebody who waits."""
    encoder = FakeEncoder(tokens_per_second=20_000)
    engine = engine_of(encoder, tokens_max=100_000, inputs_max=4096)
    engine.warm_up([Tokenized([1] * 200)])

    def bulk_batch() -> int:
        engine.step()
        return sum(len(ids) for ids in encoder.batches[-1])

    inputs = [text(*divmod(number, 200), *[1] * 98) for number in range(1000)]
    engine.encode(embed(1, "bulk"), inputs)
    alone = bulk_batch()
    engine.encode(embed(2), [text(1, 2, 3)])
    engine.step()
    beside = bulk_batch()
    encoder.now += limits.encoding_interactive_memory_seconds + 1
    later = bulk_batch()
    assert alone == pytest.approx(20_000 * limits.encoding_bulk_seconds, rel=0.02)
    assert later == pytest.approx(alone, rel=0.02)
    assert beside == pytest.approx(20_000 * limits.encoding_bulk_beside_interactive_seconds, abs=100)


def test_engine_counts_what_it_does() -> None:
    """Steps move on with every batch and every layer; tokens are those of inputs, without padding."""
    encoder = FakeEncoder()
    engine = engine_of(encoder, inputs_max=1)
    engine.encode(embed(1), [text(1, 2), text(3)])
    run(engine)
    encoder.passes = 40
    assert (engine.progress().step, engine.progress().tokens) == (42, 3)


def test_pace_ignores_batches_that_are_too_small_to_tell() -> None:
    """A single short text costs a whole pass: that is no measure of speed."""
    pace = Pace()
    pace.measured(limits.encoding_pace_tokens_min - 1, 10.0)
    assert pace.tokens_per_second == 0
    pace.measured(1000, 0.1)
    assert pace.tokens_per_second == pytest.approx(10_000)
    pace.measured(1000, 0.2)
    assert 5000 < pace.tokens_per_second < 10_000
    assert pace.tokens_in(0.0) == limits.encoding_batch_tokens_min


def test_batch_seconds_depend_on_who_waits() -> None:
    """Interactive batches, bulk ones beside them, bulk ones alone."""
    assert batch_seconds(bulk=False, since_interactive_seconds=0) == limits.encoding_interactive_seconds
    assert batch_seconds(bulk=True, since_interactive_seconds=1) < batch_seconds(
        bulk=True, since_interactive_seconds=60
    )


def test_embeddings_are_split_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames hold about as much as they may, items stay in order, and one that is too long goes alone."""
    monkeypatch.setattr(limits, "embeddings_frame_bytes", 300)
    items = [Embedding(number, dense=b"x" * size) for number, size in enumerate([100, 100, 100, 1000, 100])]
    frames = list(split_embeddings(Embeddings(7, 10, items, last=True)))
    assert [(frame.first, len(frame.items), frame.last) for frame in frames] == [
        (10, 2, False), (12, 1, False), (13, 1, False), (14, 1, True),
    ]  # fmt: skip
    assert [item for frame in frames for item in frame.items] == items
    assert list(split_embeddings(Embeddings(7, 0, [], last=True))) == [Embeddings(7, 0, [], last=True)]


def test_bulk_beside_interactive_requests_keeps_its_bound_on_a_slow_machine() -> None:
    """2,000 tokens a second: a batch that somebody may have to wait for is computed in the 30 ms that it may take."""
    pace = Pace()
    pace.measured(1000, 0.5)
    tokens = pace.tokens_in(batch_seconds(bulk=True, since_interactive_seconds=0))
    assert tokens / 2000 <= limits.encoding_bulk_beside_interactive_seconds
