"""What FlagEmbedding itself answers, from a process of its own: torch is not in the one that runs the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("ask_flagembedding.py")


class Question(msgspec.Struct):
    """Texts and pairs, and the folders of the models to ask."""

    texts: list[str]
    pairs: list[tuple[str, str]]
    m3: str
    dense: str
    """Pooled by mean."""
    reranker: str
    llm_reranker: str
    layerwise_reranker: str
    cutoff_layer: int


class Answer(msgspec.Struct):
    """What each model gave."""

    dense: list[list[float]]
    sparse: list[dict[str, float]]
    colbert: list[list[list[float]]]
    mean: list[list[float]]
    reranker: list[float]
    llm_reranker: list[float]
    layerwise_reranker: list[float]


def ask(question: Question) -> Answer:
    """Load each model with FlagEmbedding's own classes, and call them."""
    script = [sys.executable, "-P", str(SCRIPT)]
    done = subprocess.run(script, input=msgspec.json.encode(question), capture_output=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Answer)
