"""Embeddings and rerankers on FlagEmbedding: beside the library called offline, and beside themselves.

Texts are fresh in each round, and the response cache is off. The models are all-MiniLM-L6-v2, and a BGE-M3 and a
reranker of its size.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tests.support.minilm import minilm_folder

from benchmarks.client import Connection, connect
from benchmarks.encoder_models import m3_folder, reranker_folder
from benchmarks.figures import Bound, Figure, Options, command, compare, percentile
from benchmarks.harness import HOST, Server, daemon
from benchmarks.offline_flag import offline_flag, require_flag
from benchmarks.padding import padding_figure
from benchmarks.workload import fresh_number, text

EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
AT_A_TIME = 64
DOCUMENTS = 16
BULK_TEXTS_PER_REQUEST = 2000
PACKAGES = ("FlagEmbedding", "torch", "transformers")


async def measure(options: Options) -> list[Figure]:
    require_flag()
    figures = [
        await _beside_offline_embedding(options),
        await _every_kind(options),
        padding_figure(options),
        await _beside_bulk(options),
        await _beside_offline_rerank(options),
    ]
    return [_with_versions(figure) for figure in figures]


# ------------------------------------------------------------------------------------------------ beside the library


async def _beside_offline_embedding(options: Options) -> Figure:
    count = options.scaled(512, 16)
    folder = minilm_folder()
    with daemon(flag_model(folder)) as server, offline_flag("dense", folder) as peer:
        warm_up = mixed_texts(options.scaled(AT_A_TIME, 4))
        await single_texts(server, warm_up)
        peer.seconds(warm_up)
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            texts = mixed_texts(count)
            rounds.append((count / await single_texts(server, texts), count / peer.seconds(texts)))
    return compare(
        f"embeddings, {count} single texts, {AT_A_TIME} at a time",
        "texts/s",
        rounds,
        peer_name="one offline FlagEmbedding call",
        target=Bound("ratio", "≥", 0.9),
    )


async def _beside_offline_rerank(options: Options) -> Figure:
    requests = options.scaled(32, 2)
    folder = reranker_folder()
    with daemon(flag_model(folder)) as server, offline_flag("reranker", folder) as peer:
        await reranked(server, fresh_questions(requests))
        peer.seconds(_pairs(fresh_questions(requests)))
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            questions = fresh_questions(requests)
            pairs = requests * DOCUMENTS
            rounds.append((pairs / await reranked(server, questions), pairs / peer.seconds(_pairs(questions))))
    return compare(
        f"rerank, {requests} requests × {DOCUMENTS} documents",
        "pairs/s",
        rounds,
        peer_name="one offline FlagEmbedding call",
        target=Bound("ratio", "≥", 0.9),
    )


# ------------------------------------------------------------------------------------------------ beside itself


async def _every_kind(options: Options) -> Figure:
    """BGE-M3's three kinds of vectors from one pass, and what two of them add."""
    count = options.scaled(16, 2)
    every = {"return_sparse": True, "return_colbert": True}
    with daemon(flag_model(m3_folder())) as server:
        for fields in (every, {}):
            await _one_request(server, mixed_texts(count), **fields)
        rounds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            # As many tokens for both: each round has texts of its own, of the same lengths.
            pair = [await _one_request(server, mixed_texts(count), **fields) for fields in (every, {})]
            rounds.append((pair[0] * 1000, pair[1] * 1000))
    return compare(
        "BGE-M3: dense, sparse and ColBERT in one request",
        "ms",
        rounds,
        peer_name="dense alone",
        target=Bound("ratio", "≤", 1.1),
    )


async def _beside_bulk(options: Options) -> Figure:
    """The 99th percentile of single texts, one after another, while a job of 10,000 texts runs and while none does."""
    requests = options.scaled(200, 5)
    bulk_texts = options.scaled(10_000, 500)
    with daemon(flag_model(minilm_folder())) as server:
        await _latencies(server, 20)
        rounds: list[tuple[float, float]] = []
        done: list[float] = []
        for _ in range(options.rounds):
            idle = await _latencies(server, requests)
            bulk = asyncio.create_task(_bulk_job(server, bulk_texts))
            await asyncio.sleep(0.5)
            beside = await _latencies(server, requests)
            done.append(float(bulk.done()))
            bulk.cancel()
            await asyncio.gather(bulk, return_exceptions=True)
            rounds.append((percentile(beside, 0.99) * 1000, percentile(idle, 0.99) * 1000))
    return compare(
        f"single embedding, p99, while {bulk_texts:,} texts are computed",
        "ms",
        rounds,
        peer_name="idle",
        target=Bound("ratio", "≤", 2.0),
        notes={"rounds_in_which_the_job_ended_too_early": sum(done)},
    )


# ------------------------------------------------------------------------------------------------ requests


async def single_texts(server: Server, texts: Sequence[str]) -> float:
    """Seconds for one request per text, so many at a time."""
    waiting = iter(texts)

    async def client(connection: Connection) -> None:
        for one in waiting:
            await connection.exchange(connection.request_bytes(EMBEDDINGS, _embedding_body(one)))

    connections = [await connect(HOST, server.port) for _ in range(min(AT_A_TIME, len(texts)))]
    began = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seconds


async def _one_request(server: Server, texts: Sequence[str], **fields: object) -> float:
    """Seconds for a request with all of these texts."""
    connection = await connect(HOST, server.port)
    request = connection.request_bytes(EMBEDDINGS, _embedding_body(texts, **fields))
    began = time.perf_counter()
    await connection.exchange(request)
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


async def _latencies(server: Server, requests: int) -> list[float]:
    """Seconds of each of so many single texts, one after another."""
    return [await _one_request(server, one) for one in mixed_texts(requests)]


async def _bulk_job(server: Server, texts: int) -> None:
    """A job of so many texts: all of its requests are there at once."""
    sizes = [min(BULK_TEXTS_PER_REQUEST, texts - first) for first in range(0, texts, BULK_TEXTS_PER_REQUEST)]
    connections = [await connect(HOST, server.port) for _ in sizes]
    try:
        await asyncio.gather(
            *(
                connection.exchange(connection.request_bytes(EMBEDDINGS, _embedding_body(mixed_texts(size))))
                for connection, size in zip(connections, sizes, strict=True)
            )
        )
    finally:
        for connection in connections:
            connection.close()


async def reranked(server: Server, questions: Sequence[tuple[str, list[str]]]) -> float:
    """Seconds for one request per query, all at once."""

    async def client(connection: Connection, query: str, documents: list[str]) -> None:
        body = {"query": query, "documents": documents, "return_documents": False}
        await connection.exchange(connection.request_bytes(RERANK, msgspec.json.encode(body)))

    connections = [await connect(HOST, server.port) for _ in questions]
    began = time.perf_counter()
    await asyncio.gather(
        *(client(connection, *question) for connection, question in zip(connections, questions, strict=True))
    )
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seconds


def _embedding_body(input: str | Sequence[str], **fields: object) -> bytes:
    """As the `openai` client asks, which takes base64 and decodes it."""
    return msgspec.json.encode({"input": input, "encoding_format": "base64", **fields})


def mixed_texts(count: int) -> list[str]:
    """Texts of 1 to 8 sentences, each fresh."""
    return [text(1 + index % 8, seed=fresh_number()) for index in range(count)]


def fresh_questions(count: int) -> list[tuple[str, list[str]]]:
    return [(text(1, seed=fresh_number()), mixed_texts(DOCUMENTS)) for _ in range(count)]


def _pairs(questions: Sequence[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    return [(query, document) for query, documents in questions for document in documents]


def flag_model(folder: Path) -> dict[str, dict[str, object]]:
    return {"one": {"path": str(folder), "backend": "flag", "idle_timeout": 0, "preload": True}}


def _with_versions(figure: Figure) -> Figure:
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return msgspec.structs.replace(figure, versions={**figure.versions, **versions})


if __name__ == "__main__":
    command(measure, __doc__)
