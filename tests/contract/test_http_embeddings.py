"""`POST /v1/embeddings`, and TEI's `/embed` and `/embed_sparse`."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from tests.support.fake_service import ENCODERS, FakeService, Script
from tests.support.http_front import Served, served
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.errors import ContextLengthExceeded, RuntimeCrashed
from llmvisor.services.service import EmbeddingRequest, ScoringRequest

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path, FakeService(statuses=list(ENCODERS))) as it:
        yield it


def last(front: Served) -> EmbeddingRequest:
    """What the service was asked for last."""
    asked = front.service.encoded[-1]
    assert isinstance(asked, EmbeddingRequest)
    return asked


async def test_answer_is_an_embeddings_list(front: Served) -> None:
    """OpenAI's shape, one object for each text, usage exact, and who served in the headers."""
    answer = await front.post(EMBEDDINGS, {"model": "embedding", "input": ["ab", "cde"]})
    parsed = CreateEmbeddingResponse.model_validate(answer.json, strict=True)
    assert parsed.model == "embedding/bge"
    assert [one.index for one in parsed.data] == [0, 1]
    assert parsed.data[0].embedding == pytest.approx([0.6, 0.0, 0.8])
    assert (parsed.usage.prompt_tokens, parsed.usage.total_tokens) == (5, 5)
    assert answer.headers["X-LLMVISOR-Model"] == "embedding/bge"
    assert answer.headers["X-LLMVISOR-Queue-Ms"] == "1.500"
    assert set(answer.json["data"][0]) == {"object", "index", "embedding"}


async def test_openai_client_reads_floats_and_base64(front: Served) -> None:
    """Its own default is base64, decoded before anybody sees it."""
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
        floats = await client.embeddings.create(model="bge", input="a", encoding_format="float")
        default = await client.embeddings.create(model="bge", input="a")
        assert floats.data[0].embedding == pytest.approx([0.6, 0.0, 0.8])
        assert list(default.data[0].embedding) == pytest.approx([0.6, 0.0, 0.8])
    raw = (await front.post(EMBEDDINGS, {"input": "a", "encoding_format": "base64"})).json
    assert base64.b64decode(raw["data"][0]["embedding"]) == array("f", [0.6, 0.0, 0.8]).tobytes()


async def test_every_kind_of_vector_can_be_asked_for(front: Served) -> None:
    """Beside the dense one, or instead of it; weights by token id as text, a ColBERT vector for each token."""
    body: dict[str, Any] = {"input": "ab", "return_sparse": True, "return_colbert": True}
    (one,) = (await front.post(EMBEDDINGS, body)).json["data"]
    assert one["sparse_embedding"] == {"7": 0.5}
    assert one["colbert_embedding"] == [[1.0, 0.0], [0.0, 1.0]]
    assert len(one["embedding"]) == 3
    assert last(front).kinds == ["dense", "sparse", "colbert"]
    (one,) = (await front.post(EMBEDDINGS, {"input": "ab", "embedding_type": "sparse"})).json["data"]
    assert set(one) == {"object", "index", "sparse_embedding"}
    body = {"input": "ab", "embedding_type": "colbert", "encoding_format": "base64"}
    (one,) = (await front.post(EMBEDDINGS, body)).json["data"]
    assert [list(array("f", base64.b64decode(vector))) for vector in one["colbert_embedding"]] == [[1, 0], [0, 1]]


async def test_dimensions_cut_and_normalise(front: Served) -> None:
    """More than the model has is a mistake."""
    answer = await front.post(EMBEDDINGS, {"input": "a", "dimensions": 2})
    assert answer.json["data"][0]["embedding"] == [1.0, 0.0]
    refused = await front.post(EMBEDDINGS, {"input": "a", "dimensions": 4})
    assert (refused.status, refused.error["param"]) == (400, "dimensions")


async def test_request_reaches_the_model_as_it_was_asked(front: Served) -> None:
    """Token ids as they are, whether to cut, and how long to stay."""
    await front.post(EMBEDDINGS, {"input": [[1, 2], [3]], "truncate": True, "keep_alive": "5m", "user": "ann"})
    asked = last(front)
    assert asked.inputs == [[1, 2], [3]]
    assert (asked.truncate, asked.keep_alive_seconds) == (True, 300.0)
    assert (asked.terms.client, asked.lane) == ("ann", "interactive")
    await front.post(EMBEDDINGS, {"input": "a"}, headers={"X-Request-Id": "mine"})
    assert (last(front).request_id, last(front).truncate, last(front).keep_alive_seconds) == ("mine", False, None)
    assert last(front).terms.client.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("said", "use"),
    [
        (None, "use"),
        ("no-cache", "no-cache"),
        ("max-age=0", "no-cache"),
        ("No-Store, no-cache", "no-store"),
        ("x", "use"),
    ],
)
async def test_cache_control_reaches_the_service(front: Served, said: str | None, use: str) -> None:
    """And what the service says of its cache reaches the client."""
    headers = {"Cache-Control": said} if said else {}
    answer = await front.post(EMBEDDINGS, {"input": "a"}, headers=headers)
    assert (last(front).cache, answer.headers["X-LLMVISOR-Cache"]) == (use, "off")
    await front.post("/v1/rerank", {"query": "q", "documents": ["d"]}, headers=headers)
    assert front.service.encoded[-1].cache == use


async def test_many_texts_let_few_go_ahead(front: Served) -> None:
    """By their number, unless the request says."""

    async def lane(count: int, headers: dict[str, str] | None = None, **fields: str) -> str:
        answer = await front.post(EMBEDDINGS, {"input": ["a"] * count, **fields}, headers=headers or {})
        assert answer.status == 200
        return last(front).lane

    few, many = limits.embedding_bulk_inputs_min - 1, limits.embedding_bulk_inputs_min
    assert (await lane(few), await lane(many)) == ("interactive", "bulk")
    assert (await lane(1, priority="bulk"), await lane(many, priority="interactive")) == ("bulk", "interactive")
    assert await lane(1, {"X-LLMVISOR-Priority": "bulk"}) == "bulk"
    wrong = await front.post(EMBEDDINGS, {"input": "a"}, headers={"X-LLMVISOR-Priority": "urgent"})
    assert wrong.status == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": [[1], [-1]]}, "input[1][0]"),
        ({"input": ["a"] * 100_000}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 3, "embedding_type": "sparse"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "embedding_type": "binary"}, "embedding_type"),
        ({"input": "a", "priority": "urgent"}, "priority"),
        ({"input": "a", "keep_alive": "soon"}, "keep_alive"),
        ({"input": "a", "user": 3}, "user"),
        ({"input": "a", "truncate": "END"}, "truncate"),
    ],
)
async def test_input_that_cannot_be_is_refused_with_its_place(front: Served, body: object, param: str) -> None:
    """Before the model hears of it, in few words."""
    answer = await front.post(EMBEDDINGS, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_value", param)
    assert len(answer.error["message"]) < 300
    assert front.service.encoded == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EMBEDDINGS, {"model": "light", "input": "a"}),
        (EMBEDDINGS, {"model": "reranker", "input": "a"}),
        ("/embed", {"model": "light", "inputs": "a"}),
        ("/v1/rerank", {"model": "light", "query": "q", "documents": ["d"]}),
        ("/v1/rerank", {"model": "bge", "query": "q", "documents": ["d"]}),
        ("/v1/score", {"model": "bge", "text_1": "q", "text_2": "d"}),
        ("/v1/chat/completions", {"model": "bge", "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"model": "rank", "prompt": "hi"}),
    ],
)
@pytest.mark.parametrize("loaded", [True, False])
async def test_model_that_does_something_else_says_so(front: Served, path: str, body: object, loaded: bool) -> None:
    """By what a loaded model can, or by the type that its file has."""
    if not loaded:
        front.service.statuses = [
            msgspec.structs.replace(one, capabilities=[], architecture="llama") for one in ENCODERS
        ]
    answer = await front.post(path, body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_operation", "model")


async def test_model_of_unknown_type_is_asked(front: Served) -> None:
    """Where nobody knows before it is loaded, the worker decides."""
    answer = await front.post(EMBEDDINGS, {"model": "plain", "input": "a"})
    assert answer.status == 200


async def test_errors_of_the_worker_name_the_field(tmp_path: Path) -> None:
    """Of the dialect that was spoken; one text has no number."""
    refuse = ContextLengthExceeded("input[1] has 9 tokens, the model takes 8", param="input[1]")
    for path, field in ((EMBEDDINGS, "input"), ("/embed", "inputs"), ("/embed_sparse", "inputs")):
        for given, param in ((["a", "b"], f"{field}[1]"), ("a", field)):
            refuse = ContextLengthExceeded("input[1] has 9 tokens, the model takes 8", param="input[1]")
            async with served(tmp_path, FakeService(statuses=list(ENCODERS), script=Script(refuse=refuse))) as front:
                answer = await front.post(path, {field: given})
                assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
                assert (answer.error["param"], answer.error["message"].split()[0]) == (param, param)


async def test_worker_that_crashes_is_a_503(tmp_path: Path) -> None:
    """As for every other request."""
    service = FakeService(statuses=list(ENCODERS), script=Script(refuse=RuntimeCrashed("killed by SIGKILL")))
    async with served(tmp_path, service) as front:
        answer = await front.post(EMBEDDINGS, {"input": "a"})
        assert (answer.status, answer.error["code"]) == (503, "runtime_crashed")
        assert "Retry-After" in answer.headers


async def test_vector_of_no_numbers_is_an_internal_error(front: Served) -> None:
    """Never `null` in a list of numbers."""
    front.service.dense = lambda _: [float("nan"), 1.0]
    for path, body in ((EMBEDDINGS, {"input": "a"}), ("/embed", {"inputs": "a"})):
        answer = await front.post(path, body)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")


async def test_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    """The service is told."""
    service = FakeService(statuses=list(ENCODERS), script=Script(gate=asyncio.Event()))
    async with served(tmp_path, service) as front:
        asking = asyncio.create_task(front.post(EMBEDDINGS, {"input": "a"}, headers={"X-Request-Id": "gone"}))
        await eventually(lambda: service.encoded != [])
        asking.cancel()
        await eventually(lambda: service.cancelled == ["gone"])


async def test_large_answer_lets_others_have_their_turn(front: Served) -> None:
    """Health is answered while megabytes of vectors are written, and the vectors are whole."""
    front.service.dense = lambda number: [float(number)] * 1024
    embedding = asyncio.create_task(front.post(EMBEDDINGS, {"input": ["a"] * 1000}))
    healthy = 0
    while not embedding.done():
        assert (await front.get("/health")).status == 200
        healthy += 1
    data = (await embedding).json["data"]
    assert [one["embedding"][-1] for one in data] == [float(number) for number in range(1000)]
    assert healthy > 1


# --------------------------------------------------------------------------------------------------------------- TEI


async def test_tei_embed_answers_a_list_of_vectors(front: Served) -> None:
    """Also for one text."""
    one = await front.post("/embed", {"inputs": "a"})
    assert one.json == [pytest.approx([0.6, 0.0, 0.8])]
    assert one.headers["X-LLMVISOR-Model"] == "embedding/bge"
    two = await front.post("/embed", {"inputs": ["a", "b"], "truncate": True, "normalize": True, "dimensions": 2})
    assert two.json == [[1.0, 0.0], [1.0, 0.0]]
    assert last(front).truncate


async def test_tei_embed_sparse_answers_lists_of_weights(front: Served) -> None:
    """A token's id and its weight."""
    answer = await front.post("/embed_sparse", {"inputs": ["a", "b"]})
    assert answer.json == [[{"index": 7, "value": 0.5}], [{"index": 7, "value": 0.5}]]
    assert last(front).kinds == ["sparse"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": ["a", ""]}, "inputs[1]"),
        ({"inputs": []}, "inputs"),
        ({"inputs": "a", "normalize": False}, "normalize"),
        ({"inputs": "a", "truncate": True, "truncation_direction": "Left"}, "truncation_direction"),
    ],
)
async def test_tei_input_that_cannot_be_is_refused(front: Served, body: object, param: str) -> None:
    """In our form of errors, with TEI's names."""
    answer = await front.post("/embed", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert front.service.encoded == []


async def test_scores_and_embeddings_are_different_requests(front: Served) -> None:
    """A rerank request never becomes an embedding."""
    await front.post("/v1/rerank", {"query": "q", "documents": ["d"]})
    assert isinstance(front.service.encoded[-1], ScoringRequest)
