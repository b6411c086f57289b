"""The llama.cpp engine: what a request gets, whoever it shares the context with.

A tiny model of random weights shows what happens to sequences; the starter model shows that it is language.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.engine_prompts import prompt_of
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise, llama_driver
from tests.support.models import starter_model_path
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Sampling, TextPrompt

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously: half floats stand in the KV cache."""
STARTER_NOISE = 0.5
"""The same for the starter model, whose matrices are multiplied in 8 bits, by other kernels for other batch sizes.
Measured: 0.31 between the candidates where texts part."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


# ---------------------------------------------------------------------------------------- many at once, room, waiting


def test_sequences_together_give_what_each_gives_alone(tiny: Path) -> None:
    """Sixteen greedy streams of different lengths, joined one after another."""
    with llama_driver(tiny, parallel=16, n_ctx=2048) as driver:
        prompts = [prompt_of(10 + 7 * seed, seed) for seed in range(16)]
        ids: list[int] = []
        for prompt in prompts:
            ids.append(driver.submit(prompt, max_tokens=40, ignore_eos=True, logprobs=5))
            driver.step()
        driver.run()
        for id, prompt in zip(ids, prompts, strict=True):
            alone = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5, cache_prompt=False)
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_requests_beyond_the_slots_wait_in_order(tiny: Path) -> None:
    """Two slots, six requests of equal length: never more than two at once, first come, first served."""
    with llama_driver(tiny, parallel=2) as driver:
        ids = [driver.submit(prompt_of(10, seed), max_tokens=6, ignore_eos=True) for seed in range(6)]
        busiest = 0
        while driver.backend.delay_seconds() is not None:
            driver.step()
            busiest = max(busiest, driver.backend.progress().active)
        assert busiest == 2
        assert driver.order == ids


def test_full_cache_sends_the_youngest_back_and_nobody_notices(tiny: Path) -> None:
    """Four sequences that need 640 cells of 256: all end, with the text that each gives alone."""
    with llama_driver(tiny, parallel=4, n_ctx=256) as driver:
        prompts = [prompt_of(30, seed) for seed in range(4)]
        ids = [driver.submit(prompt, max_tokens=130, ignore_eos=True, logprobs=5) for prompt in prompts]
        preempted = False
        before = 0
        while driver.backend.delay_seconds() is not None:
            driver.step()
            progress = driver.backend.progress()
            assert progress.kv_used <= 256
            preempted |= progress.waiting > before
            before = progress.waiting
        assert preempted
        assert driver.order[0] == ids[0], "the oldest is never sent back"
        for id, prompt in zip(ids, prompts, strict=True):
            alone = driver.generate(prompt, max_tokens=130, ignore_eos=True, logprobs=5, cache_prompt=False)
            assert driver.done[id].completion_tokens == 130
            assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_sampling_goes_on_where_it_was_after_being_sent_back(tiny: Path) -> None:
    """The random state of a sequence survives: not one draw is repeated or lost."""
    sampling = Sampling(temperature=1.0, top_k=2, top_p=1.0, seed=11, logit_bias={5: 1000.0, 6: 1000.0})
    with llama_driver(tiny, parallel=3, n_ctx=256) as driver:
        ids = [driver.submit(prompt_of(30, seed), sampling=sampling, max_tokens=120) for seed in range(3)]
        driver.run()
        for id, seed in zip(ids, range(3), strict=True):
            alone = driver.generate(prompt_of(30, seed), sampling=sampling, max_tokens=120, cache_prompt=False)
            same = sum(a == b for a, b in zip(driver.outputs[id, 0].tokens, alone.tokens, strict=True))
            assert same >= 110


def test_prompt_that_does_not_fit_beside_others_waits_and_is_not_overtaken(tiny: Path) -> None:
    """400 tokens of 512 have to wait for the 200 under way; a small one behind them does not slip past."""
    with llama_driver(tiny, parallel=4) as driver:
        running = driver.submit(prompt_of(200, 1), max_tokens=20, ignore_eos=True)
        driver.step()
        large = driver.submit(prompt_of(400, 2), max_tokens=20, ignore_eos=True)
        small = driver.submit(prompt_of(10, 3), max_tokens=1, ignore_eos=True)
        driver.step()
        assert driver.backend.progress().waiting == 2
        driver.run()
        assert driver.order.index(running) < driver.order.index(small)
        assert set(driver.order) == {running, large, small}


def test_idle_cache_makes_room_for_new_prompts(tiny: Path) -> None:
    """Ten prompts that fill half of the context each pass through it one after another."""
    with llama_driver(tiny, parallel=2) as driver:
        for seed in range(10):
            output = driver.generate(prompt_of(250, seed), max_tokens=3, ignore_eos=True)
            assert len(output.tokens) == 3
            assert driver.backend.progress().kv_used <= 512


def test_long_prompt_does_not_stall_who_streams(driver: LlamaDriver) -> None:
    """While 400 tokens of prompt are read in pieces, every step brings the stream its token."""
    streaming = driver.submit(prompt_of(10, 1), max_tokens=60, ignore_eos=True)
    driver.run(lambda: len(driver.outputs[streaming, 0].tokens) == 5)
    driver.submit(prompt_of(400, 2), max_tokens=1)
    for expected in range(6, 12):
        driver.step()
        assert len(driver.outputs[streaming, 0].tokens) == expected
    driver.run()


# -------------------------------------------------------------------------------------------------- the starter model


@pytest.fixture(scope="module")
def starter() -> Iterator[LlamaDriver]:
    with llama_driver(starter_model_path(), n_ctx=4608, n_batch=2048, parallel=16) as driver:
        yield driver


def chat(driver: LlamaDriver, text: str) -> list[int]:
    return driver.backend.tokenize(ChatPrompt([ChatMessage("user", text)]), add_special=True, parse_special=True)


@pytest.mark.model
def test_starter_model_knows_the_capital_of_france(starter: LlamaDriver) -> None:
    """The template, the tokens and the text are those of a language model."""
    output = starter.generate(chat(starter, "What is the capital of France? Answer in one sentence."), max_tokens=40)
    assert "Paris" in output.text
    assert output.finish == "stop"
    assert starter.info.architecture == "llama"
    assert starter.info.quantization == "Q4_1"


@pytest.mark.model
def test_starter_model_batched_equals_alone(starter: LlamaDriver) -> None:
    """Sixteen greedy streams at once: where a text differs from the one alone, both tokens were equally likely."""
    cities = ("Paris", "Rome", "Oslo", "Bern", "Kyiv", "Lima", "Cairo", "Doha")
    cities += ("Baku", "Riga", "Prague", "Sofia", "Seoul", "Tokyo", "Delhi", "Accra")
    prompts = [chat(starter, f"Tell me about {city}.") for city in cities]
    ids = [starter.submit(prompt, max_tokens=16, logprobs=5) for prompt in prompts]
    starter.run()
    for id, prompt in list(zip(ids, prompts, strict=True))[::5]:
        alone = starter.generate(prompt, max_tokens=16, logprobs=5, cache_prompt=False)
        assert_same_up_to_noise(starter.outputs[id, 0], alone, epsilon=STARTER_NOISE)


@pytest.mark.model
def test_cancel_aborts_a_long_prefill_under_way(starter: LlamaDriver) -> None:
    """A batch of 2,048 tokens takes a second and more; a cancellation from another thread ends it unfinished."""
    backend = starter.backend
    backend.step()
    before = backend.progress()
    words = backend.tokenize(TextPrompt("history " * 5_000), add_special=True, parse_special=True)
    id = starter.submit(words[:4_000], max_tokens=1)
    thread = threading.Thread(target=starter.step)
    thread.start()
    eventually_sync(lambda: backend.progress().phase == "prefill", 30, "the prefill has begun")
    backend.cancel(id)
    thread.join(60)
    assert not thread.is_alive()
    assert backend.progress().tokens == before.tokens, "the batch was given up"
    starter.step()
    assert starter.outputs[id, 0].finish == "cancelled"
    assert backend.progress().active == 0
    output = starter.generate(chat(starter, "What is the capital of France? Answer in one sentence."), max_tokens=40)
    assert "Paris" in output.text


def test_outputs_part_only_where_noise_decides() -> None:
    """The check itself: it refuses another token that was not as likely."""

    def run(*steps: tuple[int, float, dict[int, float]]) -> Output:
        from llmvisor_runtimes.protocol import TokenLogprob, TopLogprob  # noqa: PLC0415

        output = Output()
        for token, logprob, top in steps:
            output.tokens.append(token)
            ranked = [TopLogprob(other, b"", value) for other, value in top.items()]
            output.logprobs.append(TokenLogprob(token, b"", logprob, ranked))
        return output

    left = run((1, -0.5, {1: -0.5, 2: -0.501}))
    assert_same_up_to_noise(left, run((2, -0.5, {1: -0.501, 2: -0.5})), epsilon=0.01)
    with pytest.raises(AssertionError):
        assert_same_up_to_noise(left, run((2, -0.1, {1: -3.0, 2: -0.1})), epsilon=0.01)
    with pytest.raises(AssertionError):
        assert_same_up_to_noise(left, run((3, -0.5, {3: -0.5})), epsilon=0.01)
