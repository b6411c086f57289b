"""A real sentence embedder, from its folder (FlagEmbedding) and as GGUF (llama.cpp), through the HTTP API."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import pytest
from tests.support.daemon import Daemon
from tests.support.encoder_gguf import minilm_gguf
from tests.support.minilm import minilm_folder

pytestmark = pytest.mark.model

LABELLED = {
    "cooking": ["How long should I boil eggs?", "Whisk the flour into the melted butter.", "A recipe for tomato soup."],
    "space": [
        "The rocket reached orbit around Mars.",
        "Astronomers found a new galaxy.",
        "A telescope sees far stars.",
    ],
    "money": [
        "The central bank raised interest rates.",
        "Shares fell on the stock exchange.",
        "I need a mortgage loan.",
    ],
    "health": [
        "The doctor prescribed antibiotics.",
        "She broke her leg and wears a cast.",
        "Vaccines prevent diseases.",
    ],
}
QUERIES = {
    "Baking bread in the oven": "cooking",
    "An astronaut on the moon": "space",
    "Inflation and savings accounts": "money",
    "A nurse at the hospital": "health",
}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "folder": {"path": str(minilm_folder()), "n_threads": 1, "tier": "embedding"},
        "gguf": {"path": str(minilm_gguf()), "n_threads": 1},
    }
    with Daemon({"models": models}) as one:
        yield one


def vectors(daemon: Daemon, model: str, texts: list[str], **fields: object) -> list[list[float]]:
    status, answer = daemon.request("POST", "/v1/embeddings", {"model": model, "input": texts, **fields})
    assert status == 200, answer
    return [one["embedding"] for one in answer["data"]]


def nearness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("model", ["folder", "gguf"])
def test_nearest_neighbours_are_of_the_same_subject(daemon: Daemon, model: str) -> None:
    """Each labelled text's nearest one, and each query's, has its label; half of the numbers find the queries'."""
    labels = [label for label, texts in LABELLED.items() for _ in texts]

    def label_of(vector: list[float], known: list[list[float]]) -> str:
        likeness = [nearness(vector, other) if other is not vector else -1 for other in known]
        return labels[likeness.index(max(likeness))]

    texts = [text for group in LABELLED.values() for text in group]
    for fields in ({}, {"dimensions": 192}):
        found = vectors(daemon, model, [*texts, *QUERIES], **fields)
        assert all(math.hypot(*vector) == pytest.approx(1, abs=1e-3) for vector in found)
        known = found[: len(texts)]
        assert [label_of(query, known) for query in found[len(texts) :]] == list(QUERIES.values())
        right = [label_of(vector, known) == label for vector, label in zip(known, labels, strict=True)]
        # The model was not trained for vectors that are cut.
        assert sum(right) >= len(known) - (4 if fields else 2)


def test_both_backends_give_the_same_vectors(daemon: Daemon) -> None:
    """The same weights, and tokens counted alike."""
    texts = [text for group in LABELLED.values() for text in group]
    pairs = zip(vectors(daemon, "folder", texts), vectors(daemon, "gguf", texts), strict=True)
    assert all(nearness(one, other) > 0.99 for one, other in pairs)
    body: dict[str, Any] = {"input": texts}
    usage = [
        daemon.request("POST", "/v1/embeddings", {**body, "model": name})[1]["usage"] for name in ("folder", "gguf")
    ]
    assert usage[0] == usage[1]


def test_both_refuse_what_they_cannot_do(daemon: Daemon) -> None:
    """Sparse vectors, scores, and texts that are too long, with the same code and field."""
    for model in ("folder", "gguf"):
        for path, body, code, param in (
            ("/v1/embeddings", {"input": "a", "return_sparse": True}, "unsupported_operation", None),
            ("/v1/rerank", {"query": "a", "documents": ["b"]}, "unsupported_operation", "model"),
            ("/v1/completions", {"prompt": "a"}, "unsupported_operation", "model"),
            ("/v1/embeddings", {"input": ["a", "word " * 2000]}, "context_length_exceeded", "input"),
        ):
            status, answer = daemon.request("POST", path, {"model": model, **body})
            assert (status, answer["error"]["code"]) == (400, code), (model, path, answer)
            assert param is None or (answer["error"]["param"] or "").startswith(param), (model, path, answer)
        assert len(vectors(daemon, model, ["word " * 2000], truncate=True)) == 1
