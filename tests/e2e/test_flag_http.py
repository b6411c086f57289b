"""BGE-M3 and a BGE reranker (small ones, of the real architecture) through the real daemon and FlagEmbedding."""

from __future__ import annotations

import math
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.daemon import Daemon
from tests.support.flag_models import bge_m3_folder, reranker_folder

pytestmark = pytest.mark.model

TEXTS = ["the cat sat on the mat", "a cat sat on a mat", "rain falls in spring"]


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        # The backend and the type are told by the folders; `smol-m3` has no tier and no name that says what it is.
        "smol-m3": {"path": str(bge_m3_folder()), "n_threads": 1},
        "ranker": {"path": str(reranker_folder()), "n_threads": 1, "n_ctx": 64, "tier": "reranker"},
    }
    with Daemon({"models": models}) as one:
        yield one


def post(daemon: Daemon, path: str, **body: object) -> Any:
    status, answer = daemon.request("POST", path, body)
    assert status == 200, answer
    return answer


def test_folders_are_known_before_they_are_loaded(daemon: Daemon) -> None:
    """Their type, size and backend are listed, and what they cannot do is refused without loading them."""
    listed = {one["id"]: one for one in daemon.request("GET", "/v1/models")[1]["data"]}
    assert listed["smol-m3"]["type"] == "embeddings"
    assert listed["reranker/ranker"]["type"] == "reranker"
    assert listed["smol-m3"]["size"] > 1_000_000
    assert daemon.runtime("smol-m3")["backend"] == daemon.runtime("ranker")["backend"] == "flag"
    messages = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"model": "smol-m3", "messages": messages}),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}),
        ("/v1/rerank", {"model": "smol-m3", "query": "q", "documents": ["d"]}),
    ):
        status, answer = daemon.request("POST", path, body)
        assert (status, answer["error"]["code"]) == (400, "unsupported_operation")
    assert daemon.runtime("smol-m3")["state"] == daemon.runtime("ranker")["state"] == "not_loaded"


def test_every_kind_of_vector_comes_through(daemon: Daemon) -> None:
    """Unit vectors, near for texts that share words; weights for the words; a vector for each token."""
    answer = post(daemon, "/v1/embeddings", input=TEXTS, return_sparse=True, return_colbert=True)
    assert answer["model"] == "smol-m3"
    dense = [one["embedding"] for one in answer["data"]]
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-4) for vector in dense)

    def near(a: int, b: int) -> float:
        return sum(x * y for x, y in zip(dense[a], dense[b], strict=True))

    assert near(0, 1) > near(0, 2)
    for one in answer["data"]:
        assert one["sparse_embedding"]
        assert all(token.isdigit() and weight > 0 for token, weight in one["sparse_embedding"].items())
        assert {len(vector) for vector in one["colbert_embedding"]} == {len(dense[0])}
    tokens = answer["usage"]["prompt_tokens"]
    alone = [post(daemon, "/v1/embeddings", input=text) for text in TEXTS]
    assert sum(one["usage"]["prompt_tokens"] for one in alone) == tokens
    for one, vector in zip(alone, dense, strict=True):
        assert one["data"][0]["embedding"] == pytest.approx(vector, abs=1e-4)


def test_clients_that_ask_together_get_their_own_vectors(daemon: Daemon) -> None:
    """Mixed kinds, batched in the worker as they come."""
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    together = post(daemon, "/v1/embeddings", input=texts)["data"]

    def embed(number: int) -> Any:
        kind = {"return_sparse": True} if number % 3 else {"return_colbert": True}
        return post(daemon, "/v1/embeddings", input=texts[number], **kind)["data"][0]["embedding"]

    with ThreadPoolExecutor(12) as pool:
        vectors = list(pool.map(embed, range(len(texts))))
    for vector, one in zip(vectors, together, strict=True):
        assert vector == pytest.approx(one["embedding"], abs=1e-4)


def test_reranker_puts_the_shared_words_first(daemon: Daemon) -> None:
    """In each dialect, and a long document by its best chunk."""
    query, documents = "cat mat", ["rain falls in spring", "the cat sat on the mat"]
    assert [one["index"] for one in post(daemon, "/v1/rerank", query=query, documents=documents)["data"]] == [1, 0]
    assert [one["index"] for one in post(daemon, "/rerank", query=query, texts=documents)] == [1, 0]
    scores = [one["score"] for one in post(daemon, "/v1/score", text_1=query, text_2=documents)["data"]]
    assert 0 <= scores[0] < scores[1] <= 1


def test_long_texts_are_refused_or_cut(daemon: Daemon) -> None:
    """By the model's own tokens."""
    long = "the cat sat on the mat " * 3000
    status, answer = daemon.request("POST", "/v1/embeddings", {"input": ["a", long]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["param"].startswith("input")
    cut = post(daemon, "/v1/embeddings", input=long, truncate=True)
    assert 0 < cut["usage"]["prompt_tokens"] < 18_000
    status, answer = daemon.request("POST", "/v1/rerank", {"query": "cat", "documents": [long]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["param"].startswith("documents")


def test_long_document_counts_by_its_best_chunk(daemon: Daemon) -> None:
    """What answers the query stands at the end: cut to one chunk the documents are alike, in chunks they are not."""
    rain = "rain falls in spring " * 60
    body = {"query": "cat mat", "documents": [rain, f"{rain} the cat sat on the mat"], "raw_scores": True}
    cut = post(daemon, "/v1/rerank", **body, max_chunks_per_doc=1)
    first, second = (one["score"] for one in cut["data"])
    assert first == pytest.approx(second, abs=1e-4)
    chunked = post(daemon, "/v1/rerank", **body, max_chunks_per_doc=100)
    scores = {one["index"]: one["score"] for one in chunked["data"]}
    assert scores[1] > scores[0] + 1
    assert chunked["usage"]["prompt_tokens"] > 5 * cut["usage"]["prompt_tokens"]
