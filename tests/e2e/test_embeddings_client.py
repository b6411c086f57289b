"""Embeddings, rerank and scores over the real daemon, with the official clients and the shapes of other servers."""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import signal
import socket
from array import array
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import psutil
import pytest
from langchain_openai import OpenAIEmbeddings
from openai import OpenAI
from pydantic import SecretStr
from tests.support.daemon import Daemon, mock_model
from tests.support.polling import eventually_sync

DIMENSION = 64
"""Of the mock's vectors."""
N_CTX = 200
TEXTS = ["the red fox runs", "a red fox ran", "stocks fell on monday"]


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "smol": mock_model(tier="light"),
        "embedding": mock_model(n_ctx=N_CTX),
        "reranker": mock_model(n_ctx=N_CTX),
        "slow": mock_model(token_delay_ms=60_000, parallel=1),
        "fragile": mock_model(restart={"max": 100}),
        "paced": mock_model(token_delay_ms=5, parallel=2),
        "liar": mock_model(failpoints="embed=badid"),
        "hopeless": mock_model(failpoints="load=exit(78)"),
    }
    with Daemon({"models": models}) as one:
        yield one


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=60) as one:
        yield one


def post(daemon: Daemon, path: str, **body: object) -> Any:
    status, answer = daemon.request("POST", path, body)
    assert status == 200, answer
    return answer


def refused(daemon: Daemon, path: str, **body: object) -> tuple[int, str, str | None]:
    status, answer = daemon.request("POST", path, body)
    return status, answer["error"]["code"], answer["error"]["param"]


@contextmanager
def leaving(daemon: Daemon, body: object) -> Generator[None]:
    """A client that asks for embeddings and goes before it has them."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    connection.request("POST", "/v1/embeddings", json.dumps(body), {"Content-Type": "application/json"})
    yield
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def nearness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# -------------------------------------------------------------------------------------------------------- embeddings


def test_openai_client_gets_vectors_of_length_one(client: OpenAI) -> None:
    """Floats and base64 say the same; texts that share words are near; usage counts every token."""
    floats = client.embeddings.create(model="embedding", input=TEXTS, encoding_format="float")
    default = client.embeddings.create(model="embedding", input=TEXTS)
    vectors = [one.embedding for one in floats.data]
    assert [one.index for one in floats.data] == [0, 1, 2]
    assert all(len(vector) == DIMENSION for vector in vectors)
    assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-6) for vector in vectors)
    assert [list(one.embedding) for one in default.data] == vectors
    assert nearness(vectors[0], vectors[1]) > nearness(vectors[0], vectors[2])
    assert floats.usage.prompt_tokens == sum(len(text) + 2 for text in TEXTS)
    assert floats.model == "embedding/embedding"


def test_openai_client_cuts_dimensions(client: OpenAI) -> None:
    """The first ones, of length 1 again."""
    whole = client.embeddings.create(model="embedding", input=TEXTS[0]).data[0].embedding
    cut = client.embeddings.create(model="embedding", input=TEXTS[0], dimensions=8).data[0].embedding
    length = math.hypot(*whole[:8])
    assert cut == pytest.approx([value / length for value in whole[:8]], abs=1e-6)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="embedding", input=TEXTS[0], dimensions=DIMENSION + 1)
    assert caught.value.param == "dimensions"


def test_langchain_embeds_documents_and_queries(daemon: Daemon) -> None:
    """With its own tokenizing switched off, as for every server that is not OpenAI's, and over the batches it makes."""
    store = OpenAIEmbeddings(
        model="embedding",
        base_url=f"{daemon.url}/v1",
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,
        chunk_size=2,
    )
    documents = store.embed_documents(TEXTS)
    query = store.embed_query("red fox")
    likeness = [nearness(query, document) for document in documents]
    assert likeness[2] == min(likeness)
    assert len(documents) == len(TEXTS)


def test_token_inputs_are_the_texts_that_they_stand_for(daemon: Daemon) -> None:
    """One text's ids, or several texts'."""
    ids = post(daemon, "/tokenize", model="embedding", content="red fox")["tokens"]
    text = post(daemon, "/v1/embeddings", model="embedding", input="red fox")
    assert post(daemon, "/v1/embeddings", model="embedding", input=ids) == text
    assert (
        post(daemon, "/v1/embeddings", model="embedding", input=[ids, ids])["data"][1]["embedding"]
        == (text["data"][0]["embedding"])
    )


def test_sparse_and_colbert_come_beside_the_dense_vector(daemon: Daemon) -> None:
    """Or instead of it, as vectors and as base64."""
    (one,) = post(
        daemon, "/v1/embeddings", model="embedding", input="red fox", return_sparse=True, return_colbert=True
    )["data"]
    assert len(one["embedding"]) == DIMENSION
    assert len(one["sparse_embedding"]) == len(one["colbert_embedding"]) == 2
    assert all(token.isdigit() and weight > 0 for token, weight in one["sparse_embedding"].items())
    (sparse,) = post(daemon, "/v1/embeddings", model="embedding", input="red fox", embedding_type="sparse")["data"]
    assert sparse == {"object": "embedding", "index": 0, "sparse_embedding": one["sparse_embedding"]}
    (colbert,) = post(
        daemon,
        "/v1/embeddings",
        model="embedding",
        input="red fox",
        embedding_type="colbert",
        encoding_format="base64",
    )["data"]
    assert "embedding" not in colbert
    assert [list(array("f", base64.b64decode(vector))) for vector in colbert["colbert_embedding"]] == (
        one["colbert_embedding"]
    )


def test_model_may_be_left_out_or_called_as_elsewhere(daemon: Daemon) -> None:
    """The one that embeds is meant, and every answer names it."""
    asked: list[dict[str, str]] = [{}, {"model": "text-embedding-3-small"}, {"model": "BAAI/bge-m3"}]
    for named in asked:
        assert post(daemon, "/v1/embeddings", input="a", **named)["model"] == "embedding/embedding"
    assert post(daemon, "/v1/rerank", query="a", documents=["a"])["model"] == "reranker/reranker"
    named = {"model": "bge-reranker-v2-m3"}
    assert post(daemon, "/v1/rerank", query="a", documents=["a"], **named)["model"] == "reranker/reranker"
    assert post(daemon, "/v1/completions", model="qwen-0.5b", prompt="a", max_tokens=1)["model"] == "light/smol"
    assert refused(daemon, "/v1/completions", model="qwen-7b", prompt="a")[:2] == (404, "model_not_found")
    assert daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "qwen-0.5b"}})[0] == 404


def test_long_texts_are_refused_or_cut(daemon: Daemon) -> None:
    """With both numbers, and the text that is too long."""
    long = "x " * N_CTX
    status, answer = daemon.request("POST", "/v1/embeddings", {"input": ["a", long]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["param"] == "input[1]"
    assert str(2 * N_CTX + 2) in answer["error"]["message"]
    assert str(N_CTX) in answer["error"]["message"]
    cut = post(daemon, "/v1/embeddings", input=["a", long], truncate=True)
    assert cut["usage"]["prompt_tokens"] == 3 + N_CTX
    assert refused(daemon, "/v1/rerank", query="q", documents=["d", long])[1:] == (
        "context_length_exceeded",
        "documents[1]",
    )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 100_000}, "input"),
        ("/v1/embeddings", {"input": ["a", 7]}, "input"),
        ("/v1/embeddings", {"input": [[999_999_999]]}, "input[0]"),
        ("/v1/rerank", {"query": "q", "documents": ["d"] * 100_000}, "documents"),
        ("/embed", {"inputs": ["a", ""]}, "inputs[1]"),
        ("/rerank", {"query": "q", "texts": [1]}, "texts[0]"),
    ],
)
def test_input_that_cannot_be_is_refused_with_its_place(
    daemon: Daemon, path: str, body: dict[str, object], param: str
) -> None:
    """By the daemon, or by the model's own tokenizer."""
    assert refused(daemon, path, **body) == (400, "invalid_value", param)


# ------------------------------------------------------------------------------------------------- rerank and scores

DOCUMENTS = ["a blue whale", "the red fox", "a fox"]


def test_rerank_answers_in_every_shape(daemon: Daemon) -> None:
    """The same order in ours, Cohere's and TEI's; long documents by their best chunk."""
    ours = post(daemon, "/v1/rerank", query="red fox", documents=DOCUMENTS, top_n=2)
    assert [one["index"] for one in ours["data"]] == [1, 2]
    assert [one["relevance_score"] for one in ours["results"]] == [one["score"] for one in ours["data"]]
    cohere = post(daemon, "/v2/rerank", query="red fox", documents=DOCUMENTS)
    assert [one["index"] for one in cohere["results"]] == [1, 2, 0]
    tei = post(daemon, "/rerank", query="red fox", texts=DOCUMENTS, raw_scores=True)
    assert tei == [{"index": 1, "score": 4.0}, {"index": 2, "score": 0.0}, {"index": 0, "score": -4.0}]
    long = "blue whale " * 60 + "red fox"
    body: dict[str, Any] = {"query": "red fox", "documents": ["a fox", long], "raw_scores": True}
    whole = post(daemon, "/v1/rerank", **body, max_chunks_per_doc=20)
    assert [(one["index"], one["score"]) for one in whole["data"]] == [(1, 4.0), (0, 0.0)]
    first = post(daemon, "/v1/rerank", **body, max_chunks_per_doc=2)
    assert [(one["index"], one["score"]) for one in first["data"]] == [(0, 0.0), (1, -4.0)]


def test_score_answers_pair_by_pair(daemon: Daemon) -> None:
    """In their order."""
    answer = post(daemon, "/v1/score", text_1="red fox", text_2=DOCUMENTS, raw_scores=True)
    assert [one["score"] for one in answer["data"]] == [-4.0, 4.0, 0.0]


def test_tei_embeds(daemon: Daemon) -> None:
    """Plain lists."""
    vectors = post(daemon, "/embed", inputs=TEXTS)
    ours = post(daemon, "/v1/embeddings", input=TEXTS)
    assert vectors == [one["embedding"] for one in ours["data"]]
    (sparse,) = post(daemon, "/embed_sparse", inputs="red fox")
    assert [one["index"] for one in sparse] == sorted(one["index"] for one in sparse)
    assert len(sparse) == 2


# -------------------------------------------------------------------------------------------------- load and faults


def test_many_clients_are_all_answered(daemon: Daemon) -> None:
    """A load is shared, each gets its own vectors, and a large answer comes in many frames."""
    texts = [f"text number {number}" for number in range(40)]

    def embed(number: int) -> Any:
        return post(daemon, "/v1/embeddings", model="paced", input=[texts[number]])["data"][0]["embedding"]

    with ThreadPoolExecutor(16) as pool:
        vectors = list(pool.map(embed, range(40)))
    at_once = post(daemon, "/v1/embeddings", model="paced", input=texts)["data"]
    assert [one["embedding"] for one in at_once] == vectors
    assert len({tuple(vector) for vector in vectors}) == 40
    assert daemon.runtime("paced")["restarts"] == 0


def test_client_that_leaves_frees_its_place(daemon: Daemon) -> None:
    """The one place of this model takes a minute for each text; whoever comes next finds it free."""
    with leaving(daemon, {"model": "slow", "input": ["a", "b"]}):
        eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 1, 30, "the request runs")
    eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 0, 30, "its place is free")
    assert daemon.runtime("slow")["state"] == "loaded"
    assert daemon.runtime("slow")["restarts"] == 0


def test_worker_that_dies_is_a_pause_and_a_text_that_kills_it_is_refused(daemon: Daemon) -> None:
    """As for generations: killed from outside and by what it computes."""
    status, answer = daemon.request(
        "POST", "/v1/embeddings", {"model": "fragile", "input": "[[failpoint: embed=kill(9)]]"}
    )
    assert (status, answer["error"]["code"]) == (422, "poison_request")
    post(daemon, "/v1/embeddings", model="fragile", input="after the crashes")
    before = daemon.runtime("fragile")["restarts"]
    os.kill(daemon.worker_pid("fragile"), signal.SIGKILL)
    assert post(daemon, "/v1/rerank", model="fragile", query="word", documents=["word"])["data"][0]["score"] > 0.5
    eventually_sync(lambda: daemon.runtime("fragile")["restarts"] == before + 1, 30, "the crash is noticed")


def test_worker_that_sends_nonsense_is_replaced(daemon: Daemon) -> None:
    """A frame for nobody, each time: the request is refused, the daemon goes on."""
    assert refused(daemon, "/v1/embeddings", model="liar", input="a")[:2] == (422, "poison_request")
    assert daemon.request("GET", "/health")[0] == 200


def test_faults_leave_nothing_behind(daemon: Daemon) -> None:
    """Descriptors and processes of the daemon are as many after crashes, nonsense and clients that leave as before."""
    process = psutil.Process(daemon.pid)

    def fault(number: int) -> None:
        killing = f"[[failpoint: embed=kill(9)]] {number}"
        assert refused(daemon, "/v1/embeddings", model="fragile", input=killing)[0] == 422
        with leaving(daemon, {"model": "slow", "input": f"a {number}"}):
            eventually_sync(lambda: daemon.runtime("slow")["slots_busy"] == 1, 30, "the request runs")
        # A text of its own each time: the response cache would answer without the worker.
        post(daemon, "/v1/embeddings", model="fragile", input=f"after the crash {number}")

    def held() -> tuple[int, int]:
        return process.num_fds(), len(daemon.descendants())

    fault(0)
    before = held()
    fault(1)
    fault(2)
    eventually_sync(
        lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 30, f"{before} are held"
    )


def test_errors_of_one_text_leave_the_worker_alone(daemon: Daemon) -> None:
    """The worker says that it cannot, and serves on."""
    assert refused(daemon, "/v1/embeddings", input="[[failpoint: embed=error(no)]]")[:2] == (500, "internal_error")
    assert refused(daemon, "/v1/embeddings", input="[[failpoint: embed=refuse(no)]]")[:2] == (400, "invalid_value")
    assert daemon.runtime("embedding")["restarts"] == 0


def test_model_that_cannot_load_says_so(daemon: Daemon) -> None:
    """The same error as for generations."""
    assert refused(daemon, "/v1/embeddings", model="hopeless", input="a")[:2] == (503, "model_load_failed")
    assert refused(daemon, "/v1/embeddings", model="hopeless", input="a")[:2] == (503, "model_unavailable")
