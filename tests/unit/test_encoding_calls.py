"""Embeddings and scores between the actor and whoever asked: collected, checked, cancelled."""

from __future__ import annotations

import asyncio
from array import array

import pytest
from tests.support.fake_worker import FakeWorld

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.services.service import Embedded, EmbeddingRequest, Scored, ScoringRequest, Terms
from llmvisor.supervision.encoding import EmbeddingCall, check_vectors
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.protocol import (
    Cancel,
    Command,
    Delta,
    Embed,
    Embedding,
    EmbeddingKind,
    Embeddings,
    Failed,
    ProtocolViolation,
    Report,
    Score,
    Scores,
    Step,
    Text,
)

VECTOR = array("f", [1.0, 0.0]).tobytes()
ITEM = Embedding(3, dense=VECTOR)


def embedding(count: int = 2, **fields: object) -> EmbeddingRequest:
    inputs: list[str | list[int]] = [f"text {number}" for number in range(count)]
    return EmbeddingRequest("req_1", inputs, ["dense"], **fields)  # pyright: ignore[reportArgumentType]


SCORING = ScoringRequest("req_2", [("q", "a"), ("q", "b")], truncate=True, lane="bulk", terms=Terms(client="me"))


async def begun(world: FakeWorld, request: EmbeddingRequest | ScoringRequest) -> asyncio.Task[Embedded | Scored]:
    """The request, sent to a worker that serves."""

    async def ask() -> Embedded | Scored:
        if isinstance(request, EmbeddingRequest):
            return await world.runtime.embed(request)
        return await world.runtime.score(request)

    task = asyncio.create_task(ask())
    await asyncio.sleep(0)
    return task


async def test_request_arrives_as_it_was_asked() -> None:
    """Everything that the worker needs to know goes with it."""
    world = FakeWorld()
    worker = await world.loaded()
    asked = embedding(1, truncate=True, lane="bulk", terms=Terms(client="me"))
    first, second = await begun(world, asked), await begun(world, SCORING)
    frames: list[Command] = worker.sent[-2:]
    assert frames == [
        Embed(1, "req_1", ["text 0"], ["dense"], truncate=True, lane="bulk", client="me"),
        Score(2, "req_2", [("q", "a"), ("q", "b")], truncate=True, lane="bulk", client="me"),
    ]
    for task in (first, second):
        task.cancel()


async def test_embeddings_are_collected_until_the_last_frame() -> None:
    """In their order, with how long they waited; the place is free after the last."""
    world = FakeWorld()
    request = await begun(world, embedding(3))
    worker = await world.worker()
    world.clock.at += 2
    worker.load()
    worker.report(Embeddings(1, 0, [ITEM, ITEM], last=False))
    await asyncio.sleep(0)
    assert not request.done()
    assert world.runtime.in_flight == 1
    worker.report(Embeddings(1, 2, [Embedding(9, dense=VECTOR)], last=True))
    answer = await request
    assert isinstance(answer, Embedded)
    assert [item.tokens for item in answer.items] == [3, 3, 9]
    assert (answer.queue_ms, answer.load_ms) == (2000.0, 2000.0)
    assert world.runtime.in_flight == 0


async def test_scores_come_at_once() -> None:
    """One for each pair."""
    world = FakeWorld()
    worker = await world.loaded()
    request = await begun(world, SCORING)
    worker.report(Scores(1, [0.5, -0.5], 12))
    assert await request == Scored(scores=[0.5, -0.5], tokens=12)


@pytest.mark.parametrize(
    "report",
    [
        Embeddings(1, 1, [ITEM], last=False),
        Embeddings(1, 0, [ITEM] * 3, last=True),
        Embeddings(1, 0, [ITEM], last=True),
        Embeddings(1, 0, [], last=True),
        Embeddings(1, 0, [ITEM, ITEM], last=False),
        Embeddings(1, 0, [Embedding(3)], last=False),
        Embeddings(7, 0, [ITEM], last=False),
        Scores(1, [0.5], 1),
        Step([Delta(1, 0, "text", [1])]),
        Text(1, "text"),
    ],
)
async def test_worker_that_makes_embeddings_up_is_replaced(report: Report) -> None:
    """Out of order, too many, too few, of no kind that was asked for, for nobody, or something else."""
    world = FakeWorld()
    worker = await world.loaded()
    request = await begun(world, embedding())
    worker.report(report)
    assert worker.stops == ["kill"]
    worker.exit()
    assert not request.done()
    assert world.runtime.in_flight == 1  # the next worker is asked again
    request.cancel()


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0]])
async def test_worker_that_makes_scores_up_is_replaced(scores: list[float]) -> None:
    """Not one for each pair."""
    world = FakeWorld()
    worker = await world.loaded()
    request = await begun(world, SCORING)
    worker.report(Scores(1, scores, 1))
    assert worker.stops == ["kill"]
    worker.exit()
    assert not request.done()
    assert world.runtime.in_flight == 1  # the next worker is asked again
    request.cancel()


async def test_refusal_of_the_worker_is_the_clients_error() -> None:
    """With its kind and its field."""
    world = FakeWorld()
    worker = await world.loaded()
    request = await begun(world, embedding())
    worker.report(Failed(1, "unsupported_operation", "this model gives no embeddings", "model"))
    with pytest.raises(UnsupportedOperation) as caught:
        await request
    assert caught.value.param == "model"
    assert world.runtime.in_flight == 0


@pytest.mark.parametrize("asked", [embedding(), SCORING])
async def test_client_that_leaves_cancels_and_frees_the_place_when_the_worker_says_so(
    asked: EmbeddingRequest | ScoringRequest,
) -> None:
    """One Cancel; what still comes is dropped until the empty last frame, or the scores that were under way."""
    world = FakeWorld()
    worker = await world.loaded()
    request = await begun(world, asked)
    request.cancel()
    await asyncio.wait([request])
    assert [command for command in worker.sent if isinstance(command, Cancel)] == [Cancel(1)]
    assert world.runtime.in_flight == 1
    worker.report(Embeddings(1, 0, [ITEM], last=False))
    assert world.runtime.in_flight == 1
    worker.report(Embeddings(1, 0, [], last=True))
    assert world.runtime.in_flight == 0
    assert worker.stops == []


async def test_client_that_leaves_while_it_waits_is_gone_at_once() -> None:
    """Nothing of it reaches a worker."""
    world = FakeWorld()
    request = await begun(world, embedding())
    worker = await world.worker()
    request.cancel()
    await asyncio.wait([request])
    assert world.runtime.in_flight == 0
    worker.load()
    assert not [command for command in worker.sent if isinstance(command, Embed)]


async def test_requests_wait_for_one_load_together() -> None:
    """Embeddings, scores and generations start one worker."""
    world = FakeWorld()
    requests = [await begun(world, asked) for asked in (embedding(), SCORING)]
    worker = await world.worker()
    worker.load()
    assert len(world.workers) == 1
    worker.report(Scores(2, [0.0, 0.0], 1))
    worker.report(Embeddings(1, 0, [ITEM, ITEM], last=True))
    assert [type(await request) for request in requests] == [Embedded, Scored]
    assert world.runtime.state is State.READY


async def test_answer_that_grows_too_large_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is kept, and the worker is told to stop."""
    monkeypatch.setattr(limits, "embeddings_bytes_max", 20)
    left: list[int] = []
    call = EmbeddingCall(1, embedding(9), leave=left.append)
    assert not call.take(Embeddings(1, 0, [ITEM, ITEM], last=False))
    assert left == []
    assert not call.take(Embeddings(1, 2, [ITEM], last=False))
    assert left == [1]
    with pytest.raises(InvalidRequest, match="over 20 bytes"):
        await call.result()
    whole = EmbeddingCall(2, embedding(3), leave=left.append)
    assert whole.take(Embeddings(2, 0, [ITEM] * 3, last=True))
    assert left == [1]
    with pytest.raises(InvalidRequest):
        await whole.result()


@pytest.mark.parametrize(
    ("item", "kinds"),
    [
        (Embedding(1, dense=b"123"), ["dense"]),
        (Embedding(1, dense=VECTOR), ["sparse"]),
        (Embedding(-1, dense=VECTOR), ["dense"]),
        (Embedding(1, colbert=VECTOR), ["colbert"]),
        (Embedding(1, colbert=VECTOR, colbert_vectors=3), ["colbert"]),
        (Embedding(1, colbert=VECTOR, colbert_vectors=-1), ["colbert"]),
        (Embedding(1, colbert_vectors=1), ["colbert"]),
        (Embedding(1, dense=VECTOR, colbert=VECTOR, colbert_vectors=1), ["dense"]),
        (Embedding(1, dense=VECTOR, sparse={1: 0.5}), ["dense"]),
        (Embedding(1, sparse={-1: 0.5}), ["sparse"]),
    ],
)
def test_vectors_that_cannot_be_are_the_workers_fault(item: Embedding, kinds: list[EmbeddingKind]) -> None:
    """Cut floats, kinds that nobody asked for, numbers of vectors that do not fit."""
    with pytest.raises(ProtocolViolation):
        check_vectors(item, kinds)


def test_vectors_of_every_kind_are_taken() -> None:
    """Together, and a text without any sparse weight."""
    check_vectors(Embedding(2, VECTOR, {7: 0.5}, VECTOR * 2, 2), ["dense", "sparse", "colbert"])
    check_vectors(Embedding(0), ["sparse"])
