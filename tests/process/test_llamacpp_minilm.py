"""A real sentence embedder as GGUF: its vectors mean what the original's mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.encoder_driver import EncoderDriver, Vectors, alike, encoder_driver
from tests.support.encoder_gguf import minilm_gguf
from tests.support.minilm import minilm_folder

from llmvisor.models.gguf import estimate_memory, read_header

LABELLED = {
    "cooking": ["Bake the bread for forty minutes.", "She seasoned the soup with salt.", "A recipe for apple pie."],
    "space": ["The rocket reached orbit.", "Astronomers found a new planet.", "The moon landing of 1969."],
    "money": ["Interest rates rose again.", "He invested in stocks and bonds.", "The bank approved the loan."],
    "sport": ["The goalkeeper saved a penalty.", "She won the tennis final.", "The team lost the match."],
    "code": ["The compiler reports a type error.", "Restart the database server.", "A bug in the Python script."],
}
QUESTIONS = {
    "How long does the cake stay in the oven?": "cooking",
    "Which telescope discovered the comet?": "space",
    "What does a mortgage cost per year?": "money",
    "Who scored in the football game?": "sport",
    "Why does my program crash with a segmentation fault?": "code",
}
SENTENCES = [
    *(text for texts in LABELLED.values() for text in texts),
    "Café naïve — über façade",
    "機械学習 is machine learning",
    "x = [1, 2, 3]; print(x[0])  # UPPER lower",
    "word " * 120,
    "",
]


@pytest.fixture(scope="module")
def model() -> Path:
    return minilm_gguf()


@pytest.fixture
def driver(model: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(model) as driver:
        yield driver


def test_nearest_neighbours_are_of_the_same_label(driver: EncoderDriver) -> None:
    """Each question finds the texts of its own field, and each text its likes."""
    labels = np.array([label for label, texts in LABELLED.items() for _ in texts])
    texts = driver.encode(*(text for texts in LABELLED.values() for text in texts))
    asked = driver.encode(*QUESTIONS)
    nearest = labels[(asked @ texts.T).argmax(axis=1)]
    assert list(nearest) == list(QUESTIONS.values())
    among_texts = texts @ texts.T - 2 * np.eye(len(texts))
    same = labels[among_texts.argmax(axis=1)] == labels
    assert same.mean() >= 0.8


def test_memory_is_estimated_before_it_is_loaded(driver: EncoderDriver, model: Path) -> None:
    """What llama.cpp takes, with the room for the longest text's logits, and not twice as much."""
    header = read_header(model)
    assert header.type == "embeddings"
    estimated = estimate_memory(header, n_ctx=8192, n_batch=512)
    assert estimated.weights_bytes == driver.info.memory.weights_bytes
    taken = driver.info.memory.compute_bytes + 4 * driver.info.vocabulary * driver.info.n_ctx
    assert taken <= estimated.compute_bytes < 2 * taken


def test_vectors_are_the_same_in_mixed_batches(driver: EncoderDriver) -> None:
    """Requests of all lengths side by side; flash attention's 16-bit sums are the noise."""
    alone = np.concatenate([driver.encode(text) for text in SENTENCES])
    ids = [driver.embed(*SENTENCES[start::3], client=str(start)) for start in range(3)]
    driver.run()
    together: Vectors = np.empty_like(alone)
    for start, id in enumerate(ids):
        together[start::3] = driver.vectors(id)
    assert np.abs(together - alone).max() < 1e-3
    assert min(alike(together, alone)) > 0.99999


def test_vectors_are_those_of_sentence_transformers(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights through the library that they were made for: the same tokens, nearly the same vectors."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import torch  # noqa: PLC0415 - seconds, and only here
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_num_threads(1)
    original = SentenceTransformer(str(minilm_folder()), device="cpu")
    expected: Vectors = original.encode(SENTENCES, normalize_embeddings=True)  # pyright: ignore[reportUnknownMemberType]
    id = driver.embed(*SENTENCES)
    driver.run()
    counted = [len(ids) for ids in original.tokenizer(SENTENCES)["input_ids"]]
    assert [item.tokens for item in driver.items[id]] == counted
    assert min(alike(driver.vectors(id), expected)) > 0.999
