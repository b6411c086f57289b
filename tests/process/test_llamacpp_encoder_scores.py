"""The llama.cpp backend as a reranker: how pairs are written, and the scores that they get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.support.encoder_driver import EXACT, TEXTS, EncoderDriver, context_of, encoder_driver, model_options
from tests.support.encoder_gguf import CLS, SEP, word_tokens, write_tiny_encoder, write_tiny_llm_reranker
from tests.support.tiny_gguf import END_OF_TURN, byte_tokens
from tests.support.worker_client import Worker

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.context import DECODED
from llmvisor_runtimes.protocol import Hello, Load, Loaded, Score, Scores

NOISE = 1e-4
"""What another order of the same sums changes in one number of a vector, generously."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def ranker(models: Path) -> Path:
    return write_tiny_encoder(models / "ranker.gguf", pooling=gguf.PoolingType.RANK, classifier=True)


@pytest.fixture
def reranker(ranker: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(ranker, own=EXACT, n_batch=64) as driver:
        yield driver


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_the_same_alone_and_in_company(reranker: EncoderDriver) -> None:
    """One score for each pair, in the order of the pairs."""
    alone = [reranker.scores("cat", text)[0] for text in TEXTS]
    first, second = reranker.score("cat", *TEXTS), reranker.score("cat", *reversed(TEXTS))
    reranker.run()
    assert np.allclose(reranker.scored[first].scores, alone, atol=NOISE)
    assert np.allclose(reranker.scored[second].scores, alone[::-1], atol=NOISE)
    assert len({round(score, 2) for score in alone}) == len(TEXTS)


def test_pair_is_written_as_the_model_was_trained(reranker: EncoderDriver) -> None:
    """`[CLS] question [SEP] text [SEP]`, and that many tokens are counted."""
    request = Score(1, "r", [("ab", "c")])
    expected = [CLS, *word_tokens("ab"), SEP, *word_tokens("c"), SEP]
    assert reranker.backend.prepare(request) == [expected]
    id = reranker.score("ab", "c", "de")
    reranker.run()
    assert reranker.scored[id].tokens == len(expected) + len(expected) + 1


def test_special_tokens_cannot_be_smuggled_into_a_pair(reranker: EncoderDriver) -> None:
    """A text that names one stays a text."""
    (tokens,) = reranker.backend.prepare(Score(1, "r", [("a", "b [SEP] c")]))
    assert tokens.count(SEP) == 2


def test_long_pair_is_refused_or_its_text_cut_before_its_question(reranker: EncoderDriver) -> None:
    """The question keeps at least three quarters of the room."""
    long = "abcdefghij " * 30
    with pytest.raises(RequestError, match=r"pair 0 has 304 tokens, and the model takes 128") as caught:
        reranker.score("a", long)
    assert caught.value.kind == "context_length_exceeded"
    room = 128 - 3
    for question, text, kept in (("a", long, 1), (long, "a", room - 1), (long, long, room - room // 4)):
        (tokens,) = reranker.backend.prepare(Score(1, "r", [(question, text)], truncate=True))
        assert len(tokens) == 128
        assert tokens.index(SEP) - 1 == kept
        assert tokens[-1] == SEP


def test_generating_reranker_gives_the_odds_of_yes(models: Path) -> None:
    """Its pairs are written by its own template, and a probability is handed out as the logit that it is."""
    path = write_tiny_llm_reranker(models / "llm-ranker.gguf")
    pairs = [("ab", text) for text in ("cd", "{query}", "xyz" * 30)]
    with encoder_driver(path, own=EXACT, n_batch=64) as driver:
        assert driver.info.capabilities == ["rerank", "tokenize"]
        prepared = driver.backend.prepare(Score(1, "r", pairs))
        assert prepared[1] == [*byte_tokens("Q:abD:{query}"), END_OF_TURN]
        alone = [driver.scores(query, text)[0] for query, text in pairs]
        id = driver.score("ab", *(text for _, text in pairs))
        driver.run()
        assert np.allclose(driver.scored[id].scores, alone, atol=2e-2)  # half floats stand in the cache
        context = context_of(driver)
        assert context.encode(prepared) == DECODED
        likely = context.rows(len(pairs))
        assert np.allclose(likely.sum(axis=1), 1, atol=1e-4), "yes or no"
        assert np.allclose(np.log(likely[:, 0] / likely[:, 1]), alone, atol=2e-2)
    with encoder_driver(path, own=EXACT, n_ctx=40) as driver:
        with pytest.raises(RequestError, match="pair 0 has 97 tokens, and the model takes 40"):
            driver.score("ab", "xyz" * 30)
        (tokens,) = driver.backend.prepare(Score(1, "r", [("ab", "xyz" * 30)], truncate=True))
        assert tokens == [*byte_tokens("Q:abD:" + "xyz" * 11), END_OF_TURN]


# ------------------------------------------------------------------------------------------------------------ a worker


def test_worker_serves_scores(ranker: Path) -> None:
    """Through the pipes: one answer for all pairs."""
    with Worker("llamacpp") as worker:
        worker.receive_until(Hello)
        worker.send(Load("tiny", str(ranker), model_options()))
        worker.receive_until(Loaded)
        worker.send(Score(1, "r", [("cat", text) for text in TEXTS]))
        assert len(worker.receive_until(Scores).scores) == len(TEXTS)
