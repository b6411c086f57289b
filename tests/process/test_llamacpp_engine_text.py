"""The llama.cpp engine's texts: how they become tokens and come back, where they end, and what their tokens score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.engine_prompts import LETTERS_ONLY, prompt_of
from tests.support.llama_driver import LlamaDriver, llama_driver
from tests.support.tiny_gguf import BOS, EOS, FIRST_BYTE, VOCABULARY, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Sampling, TextPrompt, TokenPrompt

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously: half floats stand in the KV cache."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


# ---------------------------------------------------------------------------------------------------- text and tokens


def test_tokenize_takes_every_kind_of_prompt(driver: LlamaDriver) -> None:
    """Text with the leading token, ids as they are, conversations through the template with one leading token."""
    backend = driver.backend
    assert backend.tokenize(TextPrompt("hé"), add_special=True, parse_special=True) == [BOS, *byte_tokens("hé")]
    assert backend.tokenize(TextPrompt("hé"), add_special=False, parse_special=True) == byte_tokens("hé")
    assert backend.tokenize(TokenPrompt([5, 6]), add_special=True, parse_special=True) == [5, 6]
    chat = backend.tokenize(ChatPrompt([ChatMessage("user", "x")]), add_special=True, parse_special=True)
    assert chat == [BOS, *byte_tokens("[user]x"), 260, *byte_tokens("[assistant]")]
    plain = backend.tokenize(TextPrompt("<|end|>"), add_special=False, parse_special=False)
    assert plain == byte_tokens("<|end|>")


def test_detokenize_gives_text_and_the_bytes_of_each_token(driver: LlamaDriver) -> None:
    """Special tokens are written out, cut characters are bytes."""
    text, pieces = driver.backend.detokenize([*byte_tokens("hé"), 260])
    assert text == "hé<|end|>"
    assert pieces == [b"h", b"\xc3", b"\xa9", b"<|end|>"]
    assert driver.backend.detokenize([]) == ("", [])


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31])
def test_token_that_does_not_exist_is_refused(driver: LlamaDriver, token: int) -> None:
    """In a prompt, to be detokenized, in a request: never an index into llama.cpp's memory."""
    with pytest.raises(RequestError, match="vocabulary"):
        driver.backend.detokenize([token])
    with pytest.raises(RequestError, match="vocabulary"):
        driver.backend.tokenize(TokenPrompt([token]), add_special=True, parse_special=True)
    with pytest.raises(RequestError, match="vocabulary"):
        driver.submit([BOS, token])


def test_text_is_whole_characters_however_tokens_cut_them(driver: LlamaDriver) -> None:
    """Every token is one byte here: the text is what decoding all bytes at once gives, and a euro sign comes whole."""
    euro_bytes = set(byte_tokens("€"))
    only_these = {token: -1e9 for token in range(VOCABULARY) if token not in euro_bytes}
    sampling = Sampling(temperature=1000.0, top_k=0, top_p=1.0, seed=3, logit_bias=only_these)
    output = driver.generate([BOS], sampling=sampling, max_tokens=300)
    raw = bytes(token - FIRST_BYTE for token in output.tokens)
    assert output.text == raw.decode("utf-8", "replace")
    assert "€" in output.texts


# --------------------------------------------------------------------------------------------------------------- ends


def test_stop_string_across_token_borders_cuts_the_text(driver: LlamaDriver) -> None:
    """Each letter is a token; the text ends before a stop string of three of them, which never shows."""
    free = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30).text
    stop = free[10:13]
    output = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30, stop=["never", stop])
    assert output.finish == "stop"
    assert output.text == free[: free.index(stop)]


def test_stop_string_hides_the_log_probabilities_of_what_it_cut(driver: LlamaDriver) -> None:
    """The tokens of the log-probabilities are those of the text."""
    free = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30).text
    output = driver.generate(prompt_of(9), sampling=LETTERS_ONLY, max_tokens=30, stop=[free[10:13]], logprobs=1)
    assert b"".join(entry.piece for entry in output.logprobs).decode() == output.text


def test_end_token_stops_and_is_no_text(driver: LlamaDriver) -> None:
    """It counts as a token, and nothing of it shows."""
    output = driver.generate(prompt_of(9), sampling=Sampling(temperature=0, logit_bias={EOS: 1e6}), logprobs=1)
    assert (output.finish, output.text, output.tokens, output.logprobs) == ("stop", "", [EOS], [])


def test_max_tokens_is_exact(driver: LlamaDriver) -> None:
    """The usage says the same as the tokens that came."""
    id = driver.submit(prompt_of(9), max_tokens=5, ignore_eos=True)
    driver.run()
    assert driver.outputs[id, 0].finish == "length"
    assert len(driver.outputs[id, 0].tokens) == 5
    assert (driver.done[id].prompt_tokens, driver.done[id].completion_tokens) == (9, 5)


def test_no_tokens_wanted_is_done_at_once(driver: LlamaDriver) -> None:
    """Nothing is computed for nothing."""
    output = driver.generate(prompt_of(9), max_tokens=0)
    assert (output.finish, output.text, output.tokens) == ("length", "", [])
    assert driver.backend.progress().tokens == 0


def test_without_max_tokens_the_context_is_the_end(driver: LlamaDriver) -> None:
    """Prompt and text together fill it exactly."""
    output = driver.generate(prompt_of(100), max_tokens=None, ignore_eos=True)
    assert output.finish == "length"
    assert len(output.tokens) == 512 - 100


def test_prompt_as_long_as_the_context_is_refused_with_both_numbers(driver: LlamaDriver) -> None:
    """There has to be room for one token; one token less is served."""
    with pytest.raises(RequestError) as caught:
        driver.submit(prompt_of(512))
    assert caught.value.kind == "context_length_exceeded"
    assert caught.value.message.count("512") == 2
    assert len(driver.generate(prompt_of(511), max_tokens=None, ignore_eos=True).tokens) == 1


def test_empty_prompt_is_refused(driver: LlamaDriver) -> None:
    """There is nothing to continue."""
    with pytest.raises(RequestError, match="empty"):
        driver.submit([])


# -------------------------------------------------------------------------------------------- echo, log-probabilities


def test_echo_gives_the_prompt_first(driver: LlamaDriver) -> None:
    """Its text without the leading token, its ids with it."""
    prompt = [BOS, *byte_tokens("abc")]
    output = driver.generate(prompt, sampling=LETTERS_ONLY, max_tokens=4, echo=True)
    assert output.texts[0] == "abc"
    assert output.tokens[:4] == prompt
    assert len(output.tokens) == 8


def test_echo_scores_the_prompt_as_generating_it_did(driver: LlamaDriver) -> None:
    """The log-probabilities of a text that was generated are the same when the text is a prompt of many steps."""
    prompt = prompt_of(20)
    generated = driver.generate(prompt, max_tokens=150, ignore_eos=True, logprobs=2)
    id = driver.submit([*prompt, *generated.tokens], max_tokens=0, echo=True, logprobs=2)
    driver.run()
    scored = driver.outputs[id, 0]
    assert scored.finish == "length"
    assert [entry.token for entry in scored.logprobs] == [*prompt, *generated.tokens]
    assert scored.logprobs[0].logprob is None
    for mine, theirs in zip(scored.logprobs[20:], generated.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=NOISE)
        assert mine.top[0].logprob == pytest.approx(theirs.top[0].logprob, abs=NOISE)


def test_echo_with_choices_scores_the_prompt_once(driver: LlamaDriver) -> None:
    """Each choice echoes the same scores, and the prompt is computed for the first only."""
    id = driver.submit(prompt_of(150), n=3, max_tokens=2, echo=True, logprobs=1, ignore_eos=True)
    driver.run()
    first, *others = [driver.outputs[id, index] for index in range(3)]
    assert len(first.logprobs) == 152
    for other in others:
        assert other.logprobs[:150] == first.logprobs[:150]
    assert driver.backend.progress().tokens == 150 + 2 + 3


def test_scored_prompts_of_many_requests_share_the_steps(driver: LlamaDriver) -> None:
    """Four at once give what each gives alone."""
    prompts = [prompt_of(120, seed) for seed in range(4)]
    ids = [driver.submit(prompt, max_tokens=1, echo=True, logprobs=0, ignore_eos=True) for prompt in prompts]
    driver.run()
    for id, prompt in zip(ids, prompts, strict=True):
        alone = driver.generate(prompt, max_tokens=1, echo=True, logprobs=0, ignore_eos=True, cache_prompt=False)
        for mine, theirs in zip(driver.outputs[id, 0].logprobs[1:], alone.logprobs[1:], strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=NOISE)
