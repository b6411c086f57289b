"""Samplers on a model of random weights, and log-probabilities against their definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from tests.support.llama_driver import GREEDY, LlamaDriver, llama_driver
from tests.support.tiny_gguf import BOS, EOS, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.logprobs import token_logprob
from llmvisor_runtimes.protocol import Sampling

PROMPT = [BOS, *byte_tokens("theoryofeverything")]
FREE = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=7)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaDriver]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    with llama_driver(path) as driver:
        yield driver


class Vocabulary:
    """Enough of one for `token_logprob`."""

    def written_piece(self, token: int) -> bytes:
        return b"%d" % token


def sampled(driver: LlamaDriver, **values: object) -> list[int]:
    sampling = Sampling(**{"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 7, **values})  # type: ignore[arg-type]
    # Without the cache: where a sequence lies among others' cells changes the last bits of its logits.
    return driver.generate(PROMPT, sampling=sampling, max_tokens=24, ignore_eos=True, cache_prompt=False).tokens


def test_same_seed_gives_the_same_tokens_and_another_seed_others(driver: LlamaDriver) -> None:
    """A seed makes a run repeatable, bit by bit."""
    assert sampled(driver, seed=7) == sampled(driver, seed=7)
    assert sampled(driver, seed=7) != sampled(driver, seed=8)


def test_without_a_seed_every_run_is_its_own(driver: LlamaDriver) -> None:
    """None takes a fresh seed each time."""
    assert sampled(driver, seed=None) != sampled(driver, seed=None)


def test_llama_cpps_own_random_seed_is_repeatable_too(driver: LlamaDriver) -> None:
    """4294967295 means "any" to llama.cpp; to us it is a seed as any other."""
    assert sampled(driver, seed=0xFFFFFFFF) == sampled(driver, seed=0xFFFFFFFF)


def test_choice_i_samples_with_seed_plus_i(driver: LlamaDriver) -> None:
    """Choice 2 of seed 7 is what seed 9 gives alone."""
    id = driver.submit(PROMPT, sampling=FREE, n=3, max_tokens=8, ignore_eos=True)
    driver.run()
    for index in range(3):
        assert driver.outputs[id, index].tokens == sampled(driver, seed=7 + index)[:8]


def test_zero_temperature_is_the_likeliest_token(driver: LlamaDriver) -> None:
    """Greedy takes what the log-probabilities put first, every time."""
    output = driver.generate(PROMPT, logprobs=2, ignore_eos=True)
    assert len(output.logprobs) == 16
    assert all(entry.token == entry.top[0].token for entry in output.logprobs)


def test_top_k_of_one_is_greedy_at_any_temperature(driver: LlamaDriver) -> None:
    """The chain and the short cut agree."""
    greedy = driver.generate(PROMPT, max_tokens=24, ignore_eos=True).tokens
    assert sampled(driver, top_k=1, temperature=5.0) == greedy
    assert sampled(driver, top_p=1e-6, temperature=5.0) == greedy
    assert sampled(driver, min_p=1.0, temperature=5.0) == greedy


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
def test_logit_bias_forces_and_forbids_tokens(driver: LlamaDriver, sampling: Sampling) -> None:
    """+1000 makes a token certain, -inf impossible, on the short cut as in the chain."""
    wanted = byte_tokens("x")[0]
    forced = Sampling(temperature=sampling.temperature, top_k=0, top_p=1.0, seed=7, logit_bias={wanted: 1000.0})
    assert driver.generate(PROMPT, sampling=forced).tokens == [wanted] * 16
    free = driver.generate(PROMPT, sampling=sampling, ignore_eos=True).tokens
    banned = Sampling(temperature=sampling.temperature, top_k=0, top_p=1.0, seed=7, logit_bias={free[0]: -math.inf})
    assert free[0] not in driver.generate(PROMPT, sampling=banned, ignore_eos=True).tokens


def test_logit_bias_does_not_change_log_probabilities(driver: LlamaDriver) -> None:
    """They are the model's own, before anything that a request wants of the choice."""
    plain = driver.generate(PROMPT, logprobs=1, max_tokens=1, ignore_eos=True).logprobs[0]
    biased = Sampling(temperature=0, logit_bias={plain.token: 50.0})
    assert driver.generate(PROMPT, sampling=biased, logprobs=1, max_tokens=1).logprobs[0].logprob == plain.logprob


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ignore_eos_never_gives_an_end_token(driver: LlamaDriver, temperature: float) -> None:
    """The same request that ends at once goes on to its length."""
    wants_end = Sampling(temperature=temperature, seed=1, logit_bias={EOS: 1000.0})
    ended = driver.generate(PROMPT, sampling=wants_end)
    assert (ended.finish, ended.text, ended.tokens) == ("stop", "", [EOS])
    ignoring = driver.generate(PROMPT, sampling=wants_end, ignore_eos=True)
    assert (ignoring.finish, len(ignoring.tokens)) == ("length", 16)
    assert EOS not in ignoring.tokens


def test_penalties_see_the_prompt(driver: LlamaDriver) -> None:
    """A token that only the prompt holds, and that would come next, does not where presence is penalized."""
    wanted = byte_tokens("t")[0]
    assert wanted in PROMPT
    liked = {wanted: 50.0}
    assert driver.generate(PROMPT, sampling=Sampling(temperature=0, logit_bias=liked), max_tokens=1).tokens == [wanted]
    penalized = Sampling(temperature=0, logit_bias=liked, presence_penalty=100.0, repeat_last_n=64)
    assert driver.generate(PROMPT, sampling=penalized, max_tokens=1).tokens != [wanted]
    short_sighted = Sampling(temperature=0, logit_bias=liked, presence_penalty=100.0, repeat_last_n=2)
    assert driver.generate(PROMPT, sampling=short_sighted, max_tokens=1).tokens == [wanted]


def test_presence_penalty_over_the_whole_context_never_repeats(driver: LlamaDriver) -> None:
    """-1 looks back at everything."""
    never_twice = Sampling(temperature=0, presence_penalty=1000.0, repeat_last_n=-1)
    tokens = driver.generate(PROMPT, sampling=never_twice, max_tokens=100, ignore_eos=True).tokens
    assert len(set(tokens)) == len(tokens) == 100
    assert not set(tokens) & set(PROMPT)


def test_dry_breaks_a_loop_of_the_prompt(driver: LlamaDriver) -> None:
    """The token that would go on with a repetition does not come, unless a breaker stands in between."""
    loop = [BOS, *byte_tokens("abcdabcdabcdabc")]
    following = byte_tokens("d")[0]
    liked = {following: 50.0}
    assert driver.generate(loop, sampling=Sampling(temperature=0, logit_bias=liked), max_tokens=1).tokens == [following]

    def with_dry(*breakers: str) -> list[int]:
        dry = Sampling(temperature=0, logit_bias=liked, dry_multiplier=1000.0, dry_sequence_breakers=breakers)
        return driver.generate(loop, sampling=dry, max_tokens=1).tokens

    assert with_dry() != [following]
    assert with_dry("c") == [following]


@pytest.mark.parametrize(
    "values",
    [
        {"typical_p": 0.5},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        {"mirostat": 1},
        {"mirostat": 2},
        {"repeat_penalty": 1.5},
        {"frequency_penalty": 3.0},
    ],
)
def test_every_sampler_takes_effect_and_is_repeatable(driver: LlamaDriver, values: dict[str, float]) -> None:
    """Each changes what is sampled, and the same again gives the same."""
    changed = sampled(driver, **values)
    assert changed == sampled(driver, **values)
    assert changed != sampled(driver)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"repeat_penalty": -1.0}, "repeat_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"temperature": math.inf}, "temperature"),
        ({"logit_bias": {261: 1.0}}, "logit_bias"),
        ({"logit_bias": {5: math.nan}}, "logit_bias"),
    ],
)
def test_values_that_would_end_the_process_are_refused(
    driver: LlamaDriver, values: dict[str, object], param: str
) -> None:
    """llama.cpp throws for these where nobody can catch it."""
    with pytest.raises(RequestError) as caught:
        driver.submit(PROMPT, sampling=Sampling(**values))  # type: ignore[arg-type]
    assert (caught.value.kind, caught.value.param) == ("invalid_value", param)
    assert driver.backend.delay_seconds() is None


def test_token_logprob_is_the_log_of_the_softmax() -> None:
    """Against the definition, with logits far outside of what `exp` takes."""
    row = np.array([1000.0, 999.0, 990.0, -1e4], dtype=np.float32)
    entry = token_logprob(row, 1, 2, Vocabulary())  # type: ignore[arg-type]
    normalizer = math.log(1 + math.exp(-1) + math.exp(-10))
    assert entry.logprob == pytest.approx(-1 - normalizer)
    assert [(top.token, top.piece) for top in entry.top] == [(0, b"0"), (1, b"1")]
    assert entry.top[0].logprob == pytest.approx(-normalizer)


def test_token_logprob_orders_equal_tokens_by_id_and_takes_no_more_than_there_are() -> None:
    """Ties have one order; 20 of a vocabulary of 3 are 3."""
    row = np.zeros(3, dtype=np.float32)
    entry = token_logprob(row, 2, 20, Vocabulary())  # type: ignore[arg-type]
    assert [top.token for top in entry.top] == [0, 1, 2]
    assert entry.logprob == pytest.approx(-math.log(3))
