"""The llama.cpp engine cancels, pauses and fails requests: each ends or goes on as it should, and no other notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.engine_prompts import prompt_of
from tests.support.llama_driver import LlamaDriver, assert_same_up_to_noise, llama_driver
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor_runtimes.llamacpp.context import Part

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously: half floats stand in the KV cache."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


def decode_that_gives(status: int) -> Callable[[Sequence[Part]], int]:
    """A `llama_decode` that computes nothing."""

    def decode(_parts: Sequence[Part]) -> int:
        return status

    return decode


def test_cancel_ends_a_request_in_the_next_step(driver: LlamaDriver) -> None:
    """Waiting, half-read or streaming: the last delta and the usage come with the next step, and the slot is free."""
    ids = [driver.submit(prompt_of(60, seed), max_tokens=None, ignore_eos=True) for seed in range(6)]
    driver.step()
    driver.step()
    for id in ids:
        driver.backend.cancel(id)
    assert driver.backend.delay_seconds() == 0
    driver.step()
    assert [driver.outputs[id, 0].finish for id in ids] == ["cancelled"] * 6
    assert sorted(driver.done) == ids
    progress = driver.backend.progress()
    assert (progress.active, progress.waiting, progress.phase) == (0, 0, "idle")
    assert driver.backend.delay_seconds() is None


def test_cancel_of_an_unknown_or_ended_request_is_ignored(driver: LlamaDriver) -> None:
    """Its frame may cross the end on the way."""
    id = driver.submit(prompt_of(9), max_tokens=1)
    driver.run()
    driver.backend.cancel(id)
    driver.backend.cancel(999)
    driver.backend.pause(999)
    assert driver.backend.delay_seconds() is None


def test_cancelled_choices_all_end(driver: LlamaDriver) -> None:
    """One request, three choices, one `Done`."""
    id = driver.submit(prompt_of(60), n=3, max_tokens=None, ignore_eos=True)
    driver.step()
    driver.backend.cancel(id)
    driver.step()
    assert [driver.outputs[id, index].finish for index in range(3)] == ["cancelled"] * 3


def test_paused_request_waits_while_others_go_on(driver: LlamaDriver) -> None:
    """Nothing comes for it until it is resumed, and then the same text as ever."""
    alone = driver.generate(prompt_of(20, 1), max_tokens=30, ignore_eos=True, logprobs=5, cache_prompt=False)
    slow = driver.submit(prompt_of(20, 1), max_tokens=30, ignore_eos=True, logprobs=5)
    other = driver.submit(prompt_of(20, 2), max_tokens=60, ignore_eos=True)
    driver.run(lambda: len(driver.outputs[slow, 0].tokens) == 5)
    driver.backend.pause(slow)
    driver.run(lambda: other in driver.done)
    assert len(driver.outputs[slow, 0].tokens) == 5
    assert driver.backend.delay_seconds() is None
    driver.backend.resume(slow)
    driver.run()
    assert_same_up_to_noise(driver.outputs[slow, 0], alone, epsilon=NOISE)


def test_paused_request_gives_its_cells_to_one_that_needs_them(tiny: Path) -> None:
    """A slow reader does not keep others out; it is computed again when it goes on."""
    with llama_driver(tiny, parallel=2, n_ctx=256) as driver:
        slow = driver.submit(prompt_of(100, 1), max_tokens=60, ignore_eos=True)
        fast = driver.submit(prompt_of(60, 2), max_tokens=150, ignore_eos=True)
        driver.run(lambda: bool(driver.outputs[fast, 0].tokens and driver.outputs[slow, 0].tokens))
        driver.backend.pause(slow)
        driver.run(lambda: fast in driver.done)
        driver.backend.resume(slow)
        driver.run()
        assert len(driver.outputs[slow, 0].tokens) == 60


def test_failed_computation_fails_its_requests_and_no_others(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama_decode gives an error once: who was in that batch gets `internal_error`, the next request is served."""
    expected = driver.generate(prompt_of(40), max_tokens=10, ignore_eos=True, cache_prompt=False).tokens
    context = driver.context
    id = driver.submit(prompt_of(40), n=2, max_tokens=10, ignore_eos=True)
    with monkeypatch.context() as patch:
        patch.setattr(context, "decode", decode_that_gives(-3))
        driver.step()
    assert driver.failed[id].kind == "internal_error"
    assert "-3" in driver.failed[id].message
    assert driver.backend.progress().kv_used == 0
    assert driver.backend.delay_seconds() is None
    assert driver.generate(prompt_of(40), max_tokens=10, ignore_eos=True).tokens == expected


@pytest.mark.parametrize("status", [1, 2])
def test_step_that_was_not_computed_is_done_again(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """No room against the books, or aborted: nothing is lost, the text is what it would have been."""
    prompts = [prompt_of(40, seed) for seed in range(3)]
    ids = [driver.submit(prompt, max_tokens=30, ignore_eos=True, logprobs=5) for prompt in prompts]
    context = driver.context
    for _ in range(4):
        driver.step()
        driver.step()
        with monkeypatch.context() as patch:
            patch.setattr(context, "decode", decode_that_gives(status))
            driver.step()
    driver.run()
    for id, prompt in zip(ids, prompts, strict=True):
        alone = driver.generate(prompt, max_tokens=30, ignore_eos=True, logprobs=5, cache_prompt=False)
        assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_progress_counts_steps_and_tokens(driver: LlamaDriver) -> None:
    """What a tick tells the daemon moves with every step, and is idle in the end."""
    driver.submit(prompt_of(40), max_tokens=3, ignore_eos=True)
    driver.step()
    first = driver.backend.progress()
    assert (first.step, first.active, first.tokens, first.kv_used) == (1, 1, 40, 40)
    assert first.phase == "prefill"
    driver.step()
    assert driver.backend.progress().phase == "decode"
    driver.run()
    last = driver.backend.progress()
    assert (last.step, last.active, last.waiting, last.phase) == (3, 0, 0, "idle")
