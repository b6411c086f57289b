"""Models of BGE's kind converted to GGUF: llama.cpp gives what the originals give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.encoder_driver import alike, encoder_driver
from tests.support.encoder_gguf import convert_bert
from tests.support.flag_models import bge_m3_folder, reranker_folder

QUESTION = "how to launch a satellite to a planet"
TEXTS = [
    "the rocket is in orbit about the moon",
    "bread and butter in the kitchen oven",
    "judge and jury in the court trial",
    "python memory cache on the server",
    "机器 学习 模型 训练",
]
EXACT: dict[str, object] = {"flash_attn": "off"}


def transformers_of(folder: Path, kind: str) -> tuple[Any, Any]:
    """The original model and its tokenizer."""
    import torch  # noqa: PLC0415 - seconds, and only here
    import transformers  # noqa: PLC0415

    torch.set_num_threads(1)
    library: Any = transformers
    return getattr(library, kind).from_pretrained(folder).eval(), library.AutoTokenizer.from_pretrained(folder)


def test_scores_are_those_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cross-encoder of XLM-RoBERTa: the same tokens for a pair, the same scores, the right text first."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = transformers_of(reranker_folder(), "AutoModelForSequenceClassification")
    inputs = tokenizer([QUESTION] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    expected: NDArray[np.float32] = model(**inputs).logits[:, 0].detach().numpy()
    path = convert_bert(reranker_folder(), tmp_path / "reranker.gguf", pooling=None)
    with encoder_driver(path, own=EXACT, n_ctx=512) as driver:
        assert driver.info.capabilities == ["rerank", "tokenize"]
        id = driver.score(QUESTION, *TEXTS)
        driver.run()
        scored = driver.scored[id]
    assert scored.tokens == int(inputs["attention_mask"].sum())
    assert np.abs(np.array(scored.scores) - expected).max() < 0.02
    assert int(np.argmax(scored.scores)) == 0


def test_vectors_are_those_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BGE-M3's dense part: the vector of the first token."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = transformers_of(bge_m3_folder(), "AutoModel")
    inputs = tokenizer([QUESTION, *TEXTS], padding=True, return_tensors="pt")
    first = model(**inputs).last_hidden_state[:, 0].detach().numpy()
    path = convert_bert(bge_m3_folder(), tmp_path / "m3.gguf", pooling=gguf.PoolingType.CLS)
    with encoder_driver(path, own=EXACT, n_ctx=512) as driver:
        vectors = driver.encode(QUESTION, *TEXTS)
    assert min(alike(vectors, first / np.linalg.norm(first, axis=1, keepdims=True))) > 0.999
