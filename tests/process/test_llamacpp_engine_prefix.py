"""The llama.cpp engine computes a shared prefix once: for turns of a conversation, choices and other requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.engine_prompts import prompt_of
from tests.support.llama_driver import LlamaDriver, assert_same_up_to_noise, llama_driver
from tests.support.tiny_gguf import byte_tokens, write_tiny_gguf

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously: half floats stand in the KV cache."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


def test_next_turn_of_a_conversation_computes_only_what_is_new(driver: LlamaDriver) -> None:
    """Prompt and answer of the last turn are there already; `cached_tokens` says so."""
    prompt = prompt_of(100)
    answer = driver.generate(prompt, max_tokens=10, ignore_eos=True).tokens
    before = driver.backend.progress().tokens
    id = driver.submit([*prompt, *answer, *byte_tokens("more")], max_tokens=1)
    driver.run()
    # The last token of the answer was never computed.
    assert driver.done[id].cached_tokens == 109
    assert driver.backend.progress().tokens - before == 5


def test_cached_prefix_gives_the_same_text(driver: LlamaDriver) -> None:
    """Up to the noise of another batch."""
    prompt = prompt_of(120)
    fresh = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5)
    again = driver.generate(prompt, max_tokens=40, ignore_eos=True, logprobs=5)
    assert_same_up_to_noise(fresh, again, epsilon=NOISE)


def test_cache_prompt_false_computes_everything_and_leaves_nothing(driver: LlamaDriver) -> None:
    """A request that must not use the cache is not in it afterwards either."""
    driver.generate(prompt_of(100), max_tokens=2)
    alone = driver.submit(prompt_of(100), max_tokens=2, cache_prompt=False)
    driver.run()
    assert driver.done[alone].cached_tokens == 0
    assert driver.backend.progress().kv_used == 0
    again = driver.submit(prompt_of(100), max_tokens=2)
    driver.run()
    assert driver.done[again].cached_tokens == 99


def test_idle_cache_makes_way_for_who_decodes_and_comes_back(driver: LlamaDriver) -> None:
    """1. A long prompt ends. 2. Another one decodes: its cells are the only ones in the context. 3. The first goes on.
    Result: what it had is not computed again, and it says what it would have said."""
    first = driver.generate(prompt_of(200), max_tokens=8, logprobs=5)
    driver.generate(prompt_of(120, 1), max_tokens=8)
    assert driver.backend.progress().kv_used < 140
    again = driver.submit(prompt_of(200), max_tokens=8, logprobs=5)
    driver.run()
    assert driver.done[again].cached_tokens == 199
    assert_same_up_to_noise(first, driver.outputs[again, 0], epsilon=NOISE)


def test_choices_share_one_prefill(driver: LlamaDriver) -> None:
    """Three choices compute a prompt of 200 once, and each its last token again."""
    id = driver.submit(prompt_of(200), n=3, max_tokens=1, ignore_eos=True)
    driver.run()
    assert driver.backend.progress().tokens == 200 + 2
    assert driver.done[id].prompt_tokens == 200
    assert driver.done[id].completion_tokens == 3


def test_more_choices_than_slots_all_come(driver: LlamaDriver) -> None:
    """Ten greedy choices on four slots are the same ten times."""
    id = driver.submit(prompt_of(50), n=10, max_tokens=10, ignore_eos=True, logprobs=5)
    driver.run()
    first = driver.outputs[id, 0]
    for index in range(10):
        assert_same_up_to_noise(first, driver.outputs[id, index], epsilon=NOISE)
    assert driver.done[id].completion_tokens == 100


def test_common_prefix_of_requests_that_come_together_is_computed_once(driver: LlamaDriver) -> None:
    """The second waits for the system prompt that the first is computing."""
    system = prompt_of(200)
    first = driver.submit([*system, *byte_tokens("one")], max_tokens=1)
    second = driver.submit([*system, *byte_tokens("two")], max_tokens=1)
    driver.run()
    assert driver.done[first].cached_tokens == 0
    assert driver.done[second].cached_tokens == 200
    assert driver.backend.progress().tokens == 203 + 3


def test_prefix_that_somebody_stopped_computing_is_not_waited_for(driver: LlamaDriver) -> None:
    """The first is paused, then cancelled, in the middle of the common prompt; the second goes on without it."""
    first = driver.submit(prompt_of(500), max_tokens=1)
    driver.backend.pause(first)
    second = driver.submit([*prompt_of(500), 7], max_tokens=1)
    driver.run(lambda: second in driver.done)
    driver.backend.cancel(first)
    driver.run()
    assert driver.outputs[first, 0].finish == "cancelled"
