"""The mock's embeddings and scores: out of words, in turn, a client's own faults included."""

from __future__ import annotations

import math
from array import array

import pytest
from tests.support.mock_driver import Mock

from llmvisor_runtimes.backend import Encodes, RequestError
from llmvisor_runtimes.mock_encoder import FRAME_ITEMS, embedding, score
from llmvisor_runtimes.protocol import Embed, Embeddings, Lane, Report, Score, Scores


def embed(id: int = 1, *texts: str | list[int], truncate: bool = False, lane: Lane = "interactive") -> Embed:
    return Embed(id, "req_1", list(texts), ["dense"], truncate=truncate, lane=lane)


def take(mock: Mock, *requests: Embed | Score) -> None:
    for request in requests:
        mock.backend.encode(request, mock.backend.prepare(request))


def run(mock: Mock) -> list[Report]:
    """Everything that comes until nothing is left, with time passing as the mock says."""
    reports: list[Report] = []
    while (wait := mock.backend.delay_seconds()) is not None:
        mock.clock.sleep(wait)
        reports += mock.backend.step()
    return reports


def dense(text: str) -> array[float]:
    return array("f", embedding(text, 1, ["dense"]).dense)


def test_vectors_are_near_for_texts_that_share_words() -> None:
    """Of length 1, the same each time, and whatever order or case the words have."""

    def near(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(dense(one), dense(other), strict=True))

    assert math.hypot(*dense("red fox")) == pytest.approx(1, abs=1e-6)
    assert dense("Fox, red!") == pytest.approx(dense("red fox"), abs=1e-6)
    assert near("a red fox", "the red fox") > 0.5 > near("a red fox", "stocks fell monday")
    assert math.hypot(*dense("!?")) == pytest.approx(1)


def test_kinds_are_those_asked_for() -> None:
    """A weight for each different word, a vector for each word."""
    item = embedding("red red fox", 13, ["sparse", "colbert"])
    assert (item.tokens, item.dense, len(item.sparse), item.colbert_vectors) == (13, b"", 2, 3)
    assert len(item.colbert) == 3 * 64 * 4
    assert sorted(item.sparse.values()) == [0.5, 0.75]


def test_scores_count_the_words_of_the_query() -> None:
    """From -4 with none of them to 4 with all."""
    assert [score("red fox", text) for text in ("a whale", "a fox", "a fox, red")] == [-4.0, 0.0, 4.0]
    assert score("", "text") == -4.0


def test_mock_encodes_and_says_so() -> None:
    """The host finds it by its methods, people by its capabilities."""
    mock = Mock()
    assert isinstance(mock.backend, Encodes)
    assert {"embedding", "sparse", "colbert", "rerank"} <= set(mock.info.capabilities)


def test_answers_come_in_frames() -> None:
    """In order, the last one marked; token ids are the text that they stand for."""
    mock = Mock()
    take(mock, embed(1, *[f"text {number}" for number in range(FRAME_ITEMS)], list(b"text 3")))
    first, second = run(mock)
    assert isinstance(first, Embeddings)
    assert isinstance(second, Embeddings)
    assert (first.first, len(first.items), first.last) == (0, FRAME_ITEMS, False)
    assert (second.first, len(second.items), second.last) == (FRAME_ITEMS, 1, True)
    assert second.items[0] == first.items[3]


def test_each_text_takes_its_time_and_interactive_ones_go_ahead() -> None:
    """A bulk request that has begun goes on; those that wait let the interactive ones pass."""
    mock = Mock(token_delay_ms=100)
    take(mock, embed(1, "a", "b", lane="bulk"), embed(2, "c", lane="bulk"))
    mock.clock.sleep(0.1)
    mock.backend.step()
    take(mock, embed(3, "d"), Score(4, "req_1", [("q", "e")]))
    begun = mock.clock.now
    reports = run(mock)
    assert [report.id for report in reports if isinstance(report, Embeddings | Scores)] == [1, 3, 4, 2]
    assert mock.clock.now - begun == pytest.approx(0.4, abs=0.01)


def test_cancelled_request_gets_an_empty_last_frame() -> None:
    """Whether it has begun or waits; the others go on, and the phase is busy as long as there are any."""
    mock = Mock(token_delay_ms=1000)
    take(mock, embed(1, "a", "b"), embed(2, "c"), embed(3, "d"))
    assert mock.backend.progress().phase == "prefill"
    mock.backend.cancel(1)
    mock.backend.cancel(3)
    mock.backend.cancel(99)
    assert mock.backend.delay_seconds() == 0
    assert mock.backend.step() == [Embeddings(1, 0, [], last=True), Embeddings(3, 0, [], last=True)]
    (report,) = run(mock)
    assert isinstance(report, Embeddings)
    assert (report.id, len(report.items)) == (2, 1)
    assert mock.backend.progress().phase == "idle"


def test_long_texts_are_refused_or_cut() -> None:
    """With both numbers; a pair counts as a whole."""
    mock = Mock(n_ctx=10)
    with pytest.raises(RequestError, match=r"input\[1\] has 11 tokens, the model takes 10") as caught:
        mock.backend.prepare(embed(1, "a", "123456789"))
    assert (caught.value.kind, caught.value.param) == ("context_length_exceeded", "input[1]")
    with pytest.raises(RequestError) as caught:
        mock.backend.prepare(Score(1, "req_1", [("1234", "12345")]))
    assert caught.value.param == "pairs[0]"
    take(mock, embed(2, "123456789", truncate=True))
    (report,) = run(mock)
    assert isinstance(report, Embeddings)
    assert report.items == [embedding("12345678", 10, ["dense"])]


def test_token_ids_that_are_none_are_refused() -> None:
    """With their place."""
    with pytest.raises(RequestError) as caught:
        Mock().backend.prepare(embed(1, [1], [2**40]))
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "input[1]")


def test_texts_bring_their_own_faults() -> None:
    """As prompts do."""
    mock = Mock()
    with pytest.raises(RequestError) as caught:
        take(mock, embed(1, "a", "[[failpoint: embed=1*refuse(no)]]"))
    assert (caught.value.kind, caught.value.message) == ("invalid_value", "no")
    with pytest.raises(RequestError) as caught:
        take(mock, Score(2, "req_1", [("[[failpoint: embed=error(later)]]", "a")]))
    assert caught.value.kind == "internal_error"
