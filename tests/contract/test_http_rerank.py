"""`/v1/rerank`, `/rerank`, `/v2/rerank` and `/v1/score`: every shape, order, cutting, and what is refused."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.fake_service import ENCODERS, FakeService, Script
from tests.support.http_front import Served, served
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.errors import ContextLengthExceeded
from llmvisor.services.service import ScoringRequest

DOCUMENTS = ["b", "a a", {"text": "a"}, "b b"]
"""For the query `a` the fake's logits are 0, 2, 1, 0."""


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path, FakeService(statuses=list(ENCODERS))) as it:
        yield it


def last(front: Served) -> ScoringRequest:
    asked = front.service.encoded[-1]
    assert isinstance(asked, ScoringRequest)
    return asked


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_answer_has_both_shapes_that_clients_read(front: Served, path: str) -> None:
    """Best first, equal ones in their own order, scores 0 to 1, documents given back."""
    answer = await front.post(path, {"model": "reranker", "query": "a", "documents": DOCUMENTS})
    body = answer.json
    assert (body["object"], body["model"]) == ("list", "reranker/rank")
    assert body["id"].startswith("rerank-")
    assert [one["index"] for one in body["data"]] == [1, 2, 0, 3]
    assert [one["score"] for one in body["data"]] == pytest.approx([sigmoid(2), sigmoid(1), 0.5, 0.5])
    assert body["data"][1]["document"] == "a"
    assert body["results"][1] == {"index": 2, "relevance_score": body["data"][1]["score"], "document": {"text": "a"}}
    assert body["usage"] == {"prompt_tokens": 40, "total_tokens": 40}
    assert answer.headers["X-LLMVISOR-Model"] == "reranker/rank"
    assert last(front).pairs == [("a", "b"), ("a", "a a"), ("a", "a"), ("a", "b b")]


@pytest.mark.parametrize("top", ["top_k", "top_n"])
async def test_best_ones_alone_can_be_asked_for(front: Served, top: str) -> None:
    """By either name, raw, and without their texts; usage is that of all."""
    body = {"query": "a", "documents": DOCUMENTS, top: 2, "raw_scores": True, "return_documents": False}
    answer = (await front.post("/v1/rerank", body)).json
    assert answer["data"] == [{"index": 1, "score": 2.0}, {"index": 2, "score": 1.0}]
    assert answer["results"] == [{"index": 1, "relevance_score": 2.0}, {"index": 2, "relevance_score": 1.0}]
    assert answer["usage"]["total_tokens"] == 40
    many = (await front.post("/v1/rerank", {**body, top: 99})).json
    assert len(many["data"]) == 4


async def test_cohere_has_its_own_shape(front: Served) -> None:
    """`results` and `meta` alone, documents only where asked for; long ones are cut as there."""
    answer = (await front.post("/v2/rerank", {"query": "a", "documents": DOCUMENTS, "top_n": 1})).json
    assert set(answer) == {"id", "results", "meta"}
    assert answer["results"] == [{"index": 1, "relevance_score": pytest.approx(sigmoid(2))}]
    assert answer["meta"]["tokens"] == {"input_tokens": 40}
    assert last(front).truncate
    await front.post("/v2/rerank", {"query": "a", "documents": ["b"], "truncate": False})
    assert not last(front).truncate
    shown = (await front.post("/v2/rerank", {"query": "a", "documents": ["b"], "return_documents": True})).json
    assert shown["results"][0]["document"] == {"text": "b"}


async def test_tei_has_its_own_shape(front: Served) -> None:
    """A list, where the body has `texts`."""
    texts = ["b", "a a", "a"]
    answer = await front.post("/rerank", {"query": "a", "texts": texts, "raw_scores": True})
    assert answer.json == [{"index": 1, "score": 2.0}, {"index": 2, "score": 1.0}, {"index": 0, "score": 0.0}]
    assert answer.headers["X-LLMVISOR-Model"] == "reranker/rank"
    shown = await front.post("/rerank", {"query": "a", "texts": texts, "return_text": True, "truncate": True})
    assert [one["text"] for one in shown.json] == ["a a", "a", "b"]
    assert shown.json[0]["score"] == pytest.approx(sigmoid(2))
    assert last(front).truncate


async def test_score_answers_pair_by_pair(front: Served) -> None:
    """vLLM's shape, in the order of the pairs."""
    answer = (await front.post("/v1/score", {"text_1": "a", "text_2": ["b", "a a"]})).json
    assert (answer["object"], answer["model"]) == ("list", "reranker/rank")
    assert [(one["index"], one["object"]) for one in answer["data"]] == [(0, "score"), (1, "score")]
    assert [one["score"] for one in answer["data"]] == pytest.approx([0.5, sigmoid(2)])
    raw = (await front.post("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "a"], "raw_scores": True})).json
    assert [one["score"] for one in raw["data"]] == [1.0, 0.0]
    assert raw["usage"]["prompt_tokens"] == 20


async def test_long_document_is_cut_and_its_best_chunk_counts(front: Served) -> None:
    """The model takes 64 tokens, which are bytes here; the answer is in the last chunk of five."""
    long = "xy " * 60 + "a"
    body = {"query": "a", "documents": [long, "b"], "raw_scores": True}
    whole = await front.post("/v1/rerank", body)
    assert (whole.status, last(front).pairs, last(front).truncate) == (200, [("a", long), ("a", "b")], False)
    cut = (await front.post("/v1/rerank", {**body, "max_chunks_per_doc": 9})).json
    pairs = last(front).pairs
    assert "".join(text for _, text in pairs[:-1]) == long
    assert all(len(text) <= 55 for _, text in pairs)
    assert last(front).truncate
    assert [(one["index"], one["score"]) for one in cut["data"]] == [(0, 1.0), (1, 0.0)]
    assert cut["data"][0]["document"] == long
    few = (await front.post("/v1/rerank", {**body, "max_chunks_per_doc": 2})).json
    assert len(last(front).pairs) == 3
    assert [one["score"] for one in few["data"]] == [0.0, 0.0]


async def test_one_chunk_is_to_cut_the_rest(front: Served) -> None:
    """Nothing is tokenized for it: the worker cuts."""
    long = "xy " * 60
    await front.post("/v1/rerank", {"query": "a", "documents": [long], "max_chunks_per_doc": 1})
    assert (last(front).pairs, last(front).truncate) == ([("a", long)], True)
    await front.post("/v2/rerank", {"query": "a", "documents": [long], "max_tokens_per_doc": 20})
    ((_, text),) = last(front).pairs
    assert 15 <= len(text) <= 20
    assert long.startswith(text)


async def test_chunks_are_bounded_altogether(front: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents, each cut into many, are refused before they keep a worker busy for minutes."""
    monkeypatch.setattr(limits, "rerank_pairs_max", 5)
    body = {"query": "a", "documents": ["xy " * 60] * 2, "max_chunks_per_doc": 9}
    answer = await front.post("/v1/rerank", body)
    assert (answer.status, answer.error["param"]) == (400, "documents")


async def test_long_query_for_many_documents_is_refused(front: Served) -> None:
    """It would be sent once for each: small bodies must not become gigabytes."""
    query = "q" * 1_000_000
    answer = await front.post("/v1/rerank", {"query": query, "documents": ["d"] * 2000})
    assert (answer.status, answer.error["param"]) == (400, "documents")
    answer = await front.post("/v1/score", {"text_1": query, "text_2": ["d"] * 2000})
    assert (answer.status, answer.error["param"]) == (400, "text_2")
    assert front.service.encoded == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": 3, "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q"}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": "text"}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", 3]}, "documents[1]"),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"title": "x"}]}, "documents[1].text"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 100_000}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_k": 0}, "top_k"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_k": 1, "top_n": 2}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "max_chunks_per_doc": 0}, "max_chunks_per_doc"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("/rerank", {"query": "q", "texts": []}, "texts"),
        ("/rerank", {"query": "q", "texts": ["a", None]}, "texts[1]"),
        ("/rerank", {"texts": ["a"]}, "query"),
        ("/rerank", {"query": "q"}, "documents"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b"] * 3000}, "text_2"),
    ],
)
async def test_input_that_cannot_be_is_refused_with_its_place(
    front: Served, path: str, body: object, param: str
) -> None:
    """Before the model hears of it."""
    answer = await front.post(path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_value", param)
    assert len(answer.error["message"]) < 300
    assert front.service.encoded == []


async def test_body_that_is_no_json_is_refused_in_both_forms(front: Served) -> None:
    """Also where the form is looked for first."""
    for path in ("/rerank", "/v1/rerank"):
        answer = await front.post_bytes(path, b"{")
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/rerank", "documents", {"query": "q", "documents": ["a", "b"]}),
        ("/rerank", "texts", {"query": "q", "texts": ["a", "b"]}),
        ("/v1/score", "text_2", {"text_1": "q", "text_2": ["a", "b"]}),
    ],
)
async def test_errors_of_the_worker_name_the_field(tmp_path: Path, path: str, field: str, body: object) -> None:
    """Of the dialect that was spoken."""
    refuse = ContextLengthExceeded("pairs[1] has 99 tokens, the model takes 64", param="pairs[1]")
    async with served(tmp_path, FakeService(statuses=list(ENCODERS), script=Script(refuse=refuse))) as front:
        answer = await front.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.error["param"] == f"{field}[1]"


async def test_score_of_no_number_is_an_internal_error(front: Served) -> None:
    """It would have no place in the order."""
    front.service.logit = lambda _query, _document: math.nan
    answer = await front.post("/v1/rerank", {"query": "q", "documents": ["a"]})
    assert (answer.status, answer.error["code"]) == (500, "internal_error")


async def test_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    """The service is told."""
    service = FakeService(statuses=list(ENCODERS), script=Script(gate=asyncio.Event()))
    async with served(tmp_path, service) as front:
        body = {"query": "q", "documents": ["a"]}
        asking = asyncio.create_task(front.post("/v1/rerank", body, headers={"X-Request-Id": "gone"}))
        await eventually(lambda: service.encoded != [])
        asking.cancel()
        await eventually(lambda: service.cancelled == ["gone"])
