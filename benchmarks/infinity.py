"""Embeddings and rerankers beside infinity-emb: the same model files, the same requests, over HTTP on both sides.

Texts are fresh in each round, and no cache of answers is on. Both compute in float32 with as many threads as cores;
infinity-emb is what its `torch` and `server` extras install, with its own defaults.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from tests.support.minilm import minilm_folder

from benchmarks.embedding import AT_A_TIME, DOCUMENTS, flag_model, fresh_questions, mixed_texts, reranked, single_texts
from benchmarks.encoder_models import reranker_folder
from benchmarks.figures import Bound, Figure, Options, command, compare
from benchmarks.harness import Server, daemon, infinity
from benchmarks.offline_flag import require_flag
from benchmarks.peers import infinity_versions


async def measure(options: Options) -> list[Figure]:
    require_flag()
    texts, requests = options.scaled(512, 16), options.scaled(32, 2)
    embedded = await _beside(minilm_folder(), options.rounds, texts, lambda: _embedding(texts))
    scored = await _beside(reranker_folder(), options.rounds, requests * DOCUMENTS, lambda: _rerank(requests))
    return [
        _figure(
            f"embeddings, {texts} single texts, {AT_A_TIME} at a time", "texts/s", embedded, Bound("ratio", "≥", 1.2)
        ),
        _figure(f"rerank, {requests} requests × {DOCUMENTS} documents", "pairs/s", scored),
    ]


Work = Callable[[Server], Awaitable[float]]
"""Seconds of the same requests, to whichever server."""


def _embedding(count: int) -> Work:
    texts = mixed_texts(count)
    return lambda server: single_texts(server, texts)


def _rerank(count: int) -> Work:
    asked = fresh_questions(count)
    return lambda server: reranked(server, asked)


async def _beside(folder: Path, rounds: int, items: int, fresh: Callable[[], Work]) -> list[tuple[float, float]]:
    """Items per second of ours and of infinity-emb's, after a round of each that does not count."""
    found: list[tuple[float, float]] = []
    with daemon(flag_model(folder)) as server, infinity(folder) as peer:
        for _ in range(rounds + 1):
            work = fresh()
            found.append((items / await work(server), items / await work(peer)))
    return found[1:]


def _figure(name: str, unit: str, rounds: list[tuple[float, float]], target: Bound | None = None) -> Figure:
    versions = infinity_versions()
    figure = compare(name, unit, rounds, peer_name=f"infinity-emb {versions['infinity-emb']}", target=target)
    theirs = {f"{package} (peer)": version for package, version in versions.items()}
    return msgspec.structs.replace(figure, versions={**figure.versions, **theirs})


if __name__ == "__main__":
    command(measure, __doc__)
