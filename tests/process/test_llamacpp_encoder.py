"""The llama.cpp backend as an encoder: the vectors that a request gets, whoever it shares a batch with.

Tiny models of random weights show what happens to texts; `test_llamacpp_minilm.py` shows that vectors mean something.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.encoder_driver import EXACT, TEXTS, EncoderDriver, alike, context_of, encoder_driver, model_options
from tests.support.encoder_gguf import FIRST_LETTER, VOCABULARY, word_tokens, write_tiny_encoder, write_tiny_t5
from tests.support.tiny_gguf import byte_tokens, write_tiny_gguf
from tests.support.worker_client import Worker

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Embed, Embeddings, Failed, Generate, Hello, Load, Loaded, Sampling, TextPrompt

NOISE = 1e-4
"""What another order of the same sums changes in one number of a vector, generously."""
CONTEXT = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return write_tiny_encoder(models / "tiny.gguf", context_length=CONTEXT)


@pytest.fixture(scope="module")
def decoder(models: Path) -> Path:
    return write_tiny_gguf(models / "decoder.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(tiny, own=EXACT, n_batch=64) as driver:
        yield driver


def refused(driver: EncoderDriver, *inputs: str | list[int]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        driver.embed(*inputs)
    return caught.value


# ------------------------------------------------------------------------------------------------------------ vectors


def test_vectors_are_the_same_alone_and_in_company(driver: EncoderDriver) -> None:
    """Whoever else is computed in the same batch changes a vector by float noise at most."""
    alone = np.concatenate([driver.encode(text) for text in TEXTS])
    ids = [driver.embed(*TEXTS[start:], client=str(start)) for start in range(len(TEXTS))]
    driver.run()
    for start, id in enumerate(ids):
        assert np.abs(driver.vectors(id) - alone[start:]).max() < NOISE
    assert driver.steps < len(TEXTS) + 6, "texts of several requests share batches"


def test_vectors_have_length_one_and_differ(driver: EncoderDriver) -> None:
    """As sentence-transformers and llama-server give them; another text has another vector."""
    vectors = driver.encode(*TEXTS)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    cosines = vectors @ vectors.T
    assert cosines[~np.eye(len(TEXTS), dtype=bool)].max() < 0.99


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_as_the_options_say(tiny: Path, pooling: str) -> None:
    """Each kind of pooling gives vectors of its own, in batches as alone."""
    with encoder_driver(tiny, own={"pooling": pooling, **EXACT}) as driver:
        together, alone = driver.encode(*TEXTS), np.concatenate([driver.encode(text) for text in TEXTS])
    assert np.abs(together - alone).max() < NOISE
    with encoder_driver(tiny, own={"pooling": "mean" if pooling == "cls" else "cls"}) as driver:
        assert min(alike(together, driver.encode(*TEXTS))) < 0.99


def test_generating_model_encodes_where_the_options_say_so(decoder: Path) -> None:
    """Its last token's vector is the text's, the same in one batch, in several, and computed with all outputs."""
    texts: list[str | list[int]] = [byte_tokens(text * 9) for text in ("abc", "abd", "xyz", "q")]
    with encoder_driver(decoder, own={"pooling": "last"}, n_batch=64) as driver:
        alone = np.concatenate([driver.encode(text) for text in texts])
        in_chunks = driver.encode(byte_tokens("abcdefgh" * 30))
        assert np.abs(driver.encode(*texts) - alone).max() < 1e-2  # half floats stand in the cache
        assert alike(alone[:1], alone[1:2])[0] < 0.99
    with encoder_driver(decoder, own={"pooling": "last"}, n_batch=512) as driver:
        context_of(driver).reads_last_token = False
        assert np.abs(driver.encode(*texts) - alone).max() < 1e-2
        assert np.abs(driver.encode(byte_tokens("abcdefgh" * 30)) - in_chunks).max() < 1e-2


def test_encoder_half_of_a_t5_encodes(models: Path) -> None:
    """llama.cpp has a call of its own for these."""
    with encoder_driver(write_tiny_t5(models / "t5.gguf"), own=EXACT) as driver:
        assert driver.info.capabilities == ["embedding", "tokenize"]
        alone = np.concatenate([driver.encode(text) for text in TEXTS])
        assert np.abs(driver.encode(*TEXTS) - alone).max() < NOISE
        assert alike(alone[:1], alone[1:2])[0] < 0.99


def test_same_text_is_computed_once(driver: EncoderDriver) -> None:
    """However often and by however many it is asked for while it waits."""
    ids = [driver.embed("cat", "dog", "cat"), driver.embed("cat")]
    driver.run()
    first, second = (driver.vectors(id) for id in ids)
    assert driver.backend.progress().tokens == len(word_tokens("cat dog")) + 4
    assert np.array_equal(first[[0, 2]], np.concatenate([second, second]))


def test_many_texts_come_in_order_and_in_frames_of_bounded_size(
    driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand texts come as several frames; the driver checks that they are in order and end once."""
    monkeypatch.setattr(limits, "embeddings_frame_bytes", 3 * (32 * 4 + 32))
    texts = [f"{'abcdefghij'[number % 10]} {'klmnopqrst'[number // 10 % 10]}" for number in range(250)]
    id = driver.embed(*texts)
    largest = 0
    while driver.backend.delay_seconds() == 0:
        for report in driver.backend.step():
            assert isinstance(report, Embeddings)
            assert report.first == len(driver.items[id])
            driver.items[id] += report.items
            largest = max(largest, len(report.items))
    assert largest == 3
    assert np.abs(driver.vectors(id)[[7, 107, 249]] - driver.encode(texts[7], texts[107], texts[249])).max() < NOISE


def test_request_without_texts_ends_at_once(driver: EncoderDriver) -> None:
    """No texts have no vectors."""
    id = driver.embed()
    driver.run()
    assert driver.ended == [id]
    assert driver.items[id] == []


def test_interactive_texts_go_ahead_of_many(driver: EncoderDriver) -> None:
    """Who waits for one text does not wait for somebody's hundreds."""
    bulk = driver.embed(*(f"{'abcdefghij'[n % 10] * 5} {'klmnopqrst'[n // 10] * 5}" for n in range(100)), lane="bulk")
    driver.step()
    one = driver.embed("moon")
    driver.run()
    assert driver.ended == [one, bulk]


# ------------------------------------------------------------------------------------------------- tokens and lengths


def test_tokens_stand_for_their_text(driver: EncoderDriver) -> None:
    """Given as tokens a text gets the same vector, and its special tokens are counted."""
    text, tokens = driver.embed("moon light"), driver.embed(word_tokens("moon light"))
    driver.run()
    assert np.array_equal(driver.vectors(text), driver.vectors(tokens))
    assert [item.tokens for id in (text, tokens) for item in driver.items[id]] == [11, 11]


def test_empty_text_is_its_special_tokens(driver: EncoderDriver) -> None:
    """It has a vector like any other."""
    id = driver.embed("", [])
    driver.run()
    assert [item.tokens for item in driver.items[id]] == [2, 2]


def test_wrong_tokens_are_refused(driver: EncoderDriver) -> None:
    """A token that the model does not have would read beyond its table."""
    for wrong in (-1, VOCABULARY, 2**31 - 1):
        error = refused(driver, [FIRST_LETTER], [FIRST_LETTER, wrong])
        assert (error.kind, error.param) == ("invalid_value", "input")
        assert str(wrong) in error.message


def test_longest_text_is_taken_and_a_longer_one_refused(driver: EncoderDriver) -> None:
    """The refusal names the text, its tokens and the bound."""
    fits = [FIRST_LETTER] * (CONTEXT - 2)
    assert driver.encode(fits).shape == (1, 32)
    error = refused(driver, "cat", [*fits, FIRST_LETTER])
    assert (error.kind, error.param) == ("context_length_exceeded", "input")
    assert error.message == f"input 1 has {CONTEXT + 1} tokens, and the model takes {CONTEXT}"


def test_n_ctx_bounds_a_text(tiny: Path) -> None:
    """A smaller context than the model's own takes shorter texts only; a larger one changes nothing."""
    for n_ctx, most in ((20, 20), (0, CONTEXT), (1000, CONTEXT)):
        with encoder_driver(tiny, n_ctx=n_ctx) as driver:
            assert driver.info.n_ctx == most
            assert driver.encode([FIRST_LETTER] * (most - 2)).shape == (1, 32)
            assert refused(driver, [FIRST_LETTER] * (most - 1)).kind == "context_length_exceeded"


def test_truncated_text_keeps_its_beginning_and_its_end_token(driver: EncoderDriver) -> None:
    """Asked for, a long text is cut to the longest that the model takes."""
    text = "abcdefghij " * 30
    id = driver.embed(text, truncate=True)
    driver.run()
    assert driver.items[id][0].tokens == CONTEXT
    assert np.array_equal(driver.vectors(id), driver.encode(word_tokens(text)[: CONTEXT - 2]))


# ------------------------------------------------------------------------------------------------------------ a worker


def test_worker_serves_embeddings_and_refuses_text(tiny: Path) -> None:
    """Through the pipes: vectors, a refusal that names both numbers, and nothing generated."""
    with Worker("llamacpp") as worker:
        worker.receive_until(Hello)
        worker.send(Load("tiny", str(tiny), model_options()))
        assert worker.receive_until(Loaded).info.capabilities == ["embedding", "tokenize"]
        worker.send(Embed(1, "r", ["cat", "dog"], ["dense"]))
        answer = worker.receive_until(Embeddings)
        assert (answer.id, answer.last, len(answer.items)) == (1, True, 2)
        worker.send(Embed(2, "r", ["abcdefghij " * 30], ["dense"]))
        assert "302 tokens" in worker.receive_until(Failed).message
        worker.send(Generate(3, "r", TextPrompt("cat"), Sampling()))
        assert worker.receive_until(Failed).kind == "unsupported_operation"
