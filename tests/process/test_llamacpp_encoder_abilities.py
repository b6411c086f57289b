"""The llama.cpp backend as an encoder: what a model is found to give as it loads, and what else is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from tests.support.encoder_driver import EXACT, EncoderDriver, encoder_driver, model_options
from tests.support.encoder_gguf import CLS, FIRST_LETTER, SEP, word_tokens, write_tiny_encoder
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.models import gguf as header_reader
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.weights import ENCODERS
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Embed,
    Generate,
    Sampling,
    Score,
    TextPrompt,
    TokenPrompt,
)

CONTEXT = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return write_tiny_encoder(models / "tiny.gguf", context_length=CONTEXT)


@pytest.fixture(scope="module")
def ranker(models: Path) -> Path:
    return write_tiny_encoder(models / "ranker.gguf", pooling=gguf.PoolingType.RANK, classifier=True)


@pytest.fixture(scope="module")
def decoder(models: Path) -> Path:
    return write_tiny_gguf(models / "decoder.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(tiny, own=EXACT, n_batch=64) as driver:
        yield driver


@pytest.fixture
def reranker(ranker: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(ranker, own=EXACT, n_batch=64) as driver:
        yield driver


# ------------------------------------------------------------------------------------------------------------ loading


def test_model_says_what_it_gives(driver: EncoderDriver, reranker: EncoderDriver) -> None:
    """An encoder gives embeddings of its own dimension, one with a classifier scores; neither chats."""
    assert driver.info.capabilities == ["embedding", "tokenize"]
    assert driver.info.embedding_dimension == 32
    assert driver.info.n_ctx == CONTEXT
    assert reranker.info.capabilities == ["rerank", "tokenize"]
    assert reranker.info.embedding_dimension == 0


def test_pooling_that_nobody_says_is_asked_for(models: Path) -> None:
    """Vectors of the wrong kind look like any other, so nothing is guessed."""
    path = write_tiny_encoder(models / "unsaid.gguf", pooling=None)
    with pytest.raises(LoadError, match=r"options\.pooling takes mean, cls, last or rank") as caught:
        EncoderDriver(path, model_options())
    assert caught.value.permanent
    with encoder_driver(path, own={"pooling": "cls"}) as driver:
        assert driver.encode("cat").shape == (1, 32)


def test_encoder_with_a_classifier_is_a_reranker_without_saying_so(models: Path) -> None:
    """What converts rerankers to GGUF leaves the pooling out of the file."""
    path = write_tiny_encoder(models / "unsaid-ranker.gguf", pooling=None, classifier=True)
    with encoder_driver(path) as driver:
        assert driver.info.capabilities == ["rerank", "tokenize"]


def test_ranking_needs_a_classifier(tiny: Path) -> None:
    """Without one llama.cpp would call a number of the vector a score."""
    with pytest.raises(LoadError, match="no classifier"):
        EncoderDriver(tiny, model_options(own={"pooling": "rank"}))


def test_daemon_knows_the_same_encoders() -> None:
    """What the header's reader calls an encoder is what the worker encodes with."""
    assert header_reader._ENCODERS == ENCODERS  # pyright: ignore[reportPrivateUsage]


def test_encoder_cannot_be_made_to_generate(tiny: Path) -> None:
    """`pooling: none` is for models that can go on with a text."""
    with pytest.raises(LoadError, match=r"options\.pooling"):
        EncoderDriver(tiny, model_options(own={"pooling": "none"}))


# ------------------------------------------------------------------------------------------------ what it cannot give


def test_what_a_model_does_not_give_is_refused(driver: EncoderDriver, reranker: EncoderDriver) -> None:
    """Each refusal says what the model gives instead."""
    wrong = [
        (driver, Score(1, "r", [("a", "b")])),
        (reranker, Embed(1, "r", ["a"], ["dense"])),
        (driver, Embed(1, "r", ["a"], ["dense", "sparse"])),
        (driver, Embed(1, "r", ["a"], ["colbert"])),
    ]
    for one, request in wrong:
        with pytest.raises(RequestError, match="this model") as caught:
            one.backend.prepare(request)
        assert caught.value.kind == "unsupported_operation"


def test_encoder_generates_no_text(driver: EncoderDriver, reranker: EncoderDriver) -> None:
    """Neither from a prompt nor from a conversation."""
    request = Generate(1, "r", TokenPrompt([FIRST_LETTER]), Sampling())
    for one in (driver, reranker):
        with pytest.raises(RequestError, match="it generates no text") as caught:
            one.backend.generate(request, [FIRST_LETTER])
        assert caught.value.kind == "unsupported_operation"
        with pytest.raises(RequestError, match="it generates no text"):
            one.backend.apply_template(ChatPrompt([ChatMessage("user", "hello")]))


def test_generating_model_gives_no_vectors(decoder: Path) -> None:
    """Unless its options say so it refuses, and says why."""
    with encoder_driver(decoder, n_ctx=256) as driver:
        for request in (Embed(1, "r", ["a"], ["dense"]), Score(1, "r", [("a", "b")])):
            with pytest.raises(RequestError, match="this model generates text") as caught:
                driver.backend.prepare(request)
            assert caught.value.kind == "unsupported_operation"


def test_texts_are_tokenized_and_back(driver: EncoderDriver) -> None:
    """The tokenizer's own commands work for encoders."""
    tokens = driver.backend.tokenize(TextPrompt("cat"), add_special=True, parse_special=True)
    assert tokens == [CLS, *word_tokens("cat"), SEP]
    assert "cat" in driver.backend.detokenize(tokens)[0]
