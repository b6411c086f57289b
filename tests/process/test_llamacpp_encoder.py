"""The llama.cpp backend as an encoder: what a request gets, whoever it shares a batch with.

Tiny models of random weights show what happens to texts; `test_llamacpp_minilm.py` shows that vectors mean something.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.support.encoder_driver import EncoderDriver, alike, encoder_driver, model_options
from tests.support.encoder_gguf import (
    CLS,
    FIRST_LETTER,
    SEP,
    VOCABULARY,
    word_tokens,
    write_tiny_encoder,
    write_tiny_llm_reranker,
    write_tiny_t5,
)
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import END_OF_TURN, byte_tokens, write_tiny_gguf
from tests.support.worker_client import Worker

from llmvisor.models import gguf as header_reader
from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.context import ABORTED, DECODED
from llmvisor_runtimes.llamacpp.encoder_context import EncoderContext, Rows
from llmvisor_runtimes.llamacpp.encoder_model import EncoderModel
from llmvisor_runtimes.llamacpp.weights import ENCODERS
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Embed,
    Embeddings,
    Failed,
    Generate,
    Hello,
    Load,
    Loaded,
    Sampling,
    Score,
    Scores,
    TextPrompt,
    TokenPrompt,
)

NOISE = 1e-4
"""What another order of the same sums changes in one number of a vector, generously."""
EXACT: dict[str, object] = {"flash_attn": "off"}
"""Flash attention adds 16-bit floats on CPUs: 0.0005 of noise in a vector."""
TEXTS = ["cat", "a dog barks", "the moon is far", "bread and butter", "z", "what a long text this is for a tiny model"]
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


def refused(driver: EncoderDriver, *inputs: str | list[int]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        driver.embed(*inputs)
    return caught.value


def context_of(driver: EncoderDriver) -> EncoderContext:
    """The context inside, for tests that make it fail."""
    model = driver.backend._model  # pyright: ignore[reportPrivateUsage]
    assert isinstance(model, EncoderModel)
    return model.context


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


# --------------------------------------------------------------------------------------------- cancelling and failing


def test_cancelled_request_ends_and_the_others_go_on(driver: EncoderDriver) -> None:
    """It ends with an empty last frame, also where somebody else wants the same texts."""
    first, second = driver.embed(*TEXTS), driver.embed(*TEXTS)
    driver.backend.cancel(first)
    driver.backend.cancel(99)
    driver.run()
    assert driver.items[first] == []
    assert len(driver.items[second]) == len(TEXTS)
    assert sorted(driver.ended) == [first, second]
    assert driver.encode("cat").shape == (1, 32)


@pytest.mark.parametrize("watched", [True, False])
def test_cancelling_aborts_what_is_being_computed(models: Path, monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    """A long text is given up between two nodes of its graph, and the next one is computed as ever."""
    monkeypatch.setattr(limits, "encoder_watched_tokens_min", 0 if watched else 10**6)
    path = write_tiny_encoder(models / "slow.gguf", context_length=4096, layers=24, dims=128)
    with encoder_driver(path, n_ctx=4096) as driver:
        before = driver.encode("cat")
        id = driver.embed([FIRST_LETTER] * 4000)
        computing = threading.Thread(target=driver.run)
        computing.start()
        eventually_sync(lambda: driver.backend.progress().active == 1)
        driver.backend.cancel(id)
        computing.join()
        assert driver.items[id] == []
        assert driver.backend.progress().tokens == 5, "the long text was not computed"
        assert np.abs(driver.encode("cat") - before).max() < NOISE


def test_abort_that_comes_late_harms_nobody(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was meant for the batch before: the text is computed again, and its request does not fail."""
    context = context_of(driver)
    encode, statuses = context.encode, [ABORTED, ABORTED]

    def interrupted(texts: Sequence[Sequence[int]]) -> int:
        return statuses.pop() if statuses else encode(texts)

    monkeypatch.setattr(context, "encode", interrupted)
    assert driver.encode("cat").shape == (1, 32)
    assert driver.failed == {}


def test_long_text_shows_that_it_goes_on(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one batch the step number rises, so that slowness is not taken for a hang."""
    driver.encode("cat")
    before = driver.backend.progress().step
    monkeypatch.setattr(limits, "encoder_watched_tokens_min", 100)
    driver.encode([FIRST_LETTER] * 120)
    assert driver.backend.progress().step > before + 10
    assert driver.backend.progress().phase == "idle"


def test_bad_text_fails_alone(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails is split until only the text that cannot be computed fails its request."""
    context = context_of(driver)
    encode = context.encode

    def fragile(texts: Sequence[Sequence[int]]) -> int:
        return -3 if any(FIRST_LETTER in text for text in texts) else encode(texts)

    monkeypatch.setattr(context, "encode", fragile)
    ids = [driver.embed(text) for text in ("cd", "ef", "a", "gh", "ij")]
    driver.run()
    assert list(driver.failed) == [ids[2]]
    assert driver.failed[ids[2]].kind == "internal_error"
    assert [len(driver.items[id]) for id in ids] == [1, 1, 0, 1, 1]


def test_vector_of_no_numbers_fails_its_request(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN never leaves the worker."""
    context = context_of(driver)
    rows = context.rows

    def without_numbers(count: int) -> Rows:
        return np.full_like(rows(count), np.nan)

    monkeypatch.setattr(context, "rows", without_numbers)
    id = driver.embed("cat")
    driver.run()
    assert "no number" in driver.failed[id].message


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


def test_worker_serves_scores(ranker: Path) -> None:
    """Through the pipes: one answer for all pairs."""
    with Worker("llamacpp") as worker:
        worker.receive_until(Hello)
        worker.send(Load("tiny", str(ranker), model_options()))
        worker.receive_until(Loaded)
        worker.send(Score(1, "r", [("cat", text) for text in TEXTS]))
        assert len(worker.receive_until(Scores).scores) == len(TEXTS)
