"""Images in the cache: the same image at the same place is not computed again, and no other is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise
from tests.support.media_driver import Gate, ask, media_files, seeing
from tests.support.tiny_gguf import BOS, byte_tokens
from tests.support.tiny_mmproj import Projector, png, seen

from llmvisor_runtimes.protocol import ChatPrompt

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""
QWEN_IMAGE_TOKENS = 9
"""Of an image of 40 by 40 with the projector of two dimensions."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media_files(tmp_path_factory.mktemp("models"))


def cached(driver: LlamaDriver, conversation: ChatPrompt) -> tuple[int, Output]:
    id = driver.converse(conversation, max_tokens=4, logprobs=5, ignore_eos=True)
    driver.run()
    return driver.done[id].cached_tokens, driver.outputs[id, 0]


@pytest.mark.parametrize("projector", ["janus_pro", "gemma3", "idefics3", "qwen2vl_merger"])
@pytest.mark.parametrize("idle_cache_mb", [0, 64])
def test_image_at_the_same_place_is_not_computed_again(
    files: dict[str, Path], projector: Projector, idle_cache_mb: int
) -> None:
    """Another question about the same image: all up to there comes from the cache, and the answer is right."""
    driver = seeing(files, projector, idle_cache_mb=idle_cache_mb)
    text = "a long beginning before the image * "
    try:
        cached(driver, seen(f"{text}one", png(1)))
        # Others decode meanwhile, so that what is idle is parked where it may be.
        driver.generate([BOS, *byte_tokens("abc")], max_tokens=8, ignore_eos=True)
        gate = Gate(driver)
        gate.opened.set()
        tokens, warm = cached(driver, seen(f"{text}two", png(1)))
        again = gate.encoded
    finally:
        driver.close()
    cold = seeing(files, projector)
    try:
        expected = ask(cold, seen(f"{text}two", png(1)), max_tokens=4)
        whole = cold.backend.tokenize(seen(f"{text}", png(1)), add_special=True, parse_special=True)
    finally:
        cold.close()
    assert tokens == len(whole) - len("[assistant]") - 1
    assert again == 0
    assert_same_up_to_noise(warm, expected, epsilon=NOISE)


@pytest.mark.parametrize("projector", ["janus_pro", "qwen2vl_merger"])
def test_another_image_is_never_taken_for_the_same(files: dict[str, Path], projector: Projector) -> None:
    """What is shared ends before the first image that differs, and the answer is that of a cold cache."""
    driver = seeing(files, projector, idle_cache_mb=0)
    cold = seeing(files, projector)
    try:
        cached(driver, seen("look * and * end", png(1), png(2)))
        tokens, warm = cached(driver, seen("look * and * end", png(1), png(3)))
        expected = ask(cold, seen("look * and * end", png(1), png(3)), max_tokens=4)
        shared = cold.backend.tokenize(seen("look * and ", png(1)), add_special=True, parse_special=True)
    finally:
        driver.close()
        cold.close()
    begins = len("<|vision_start|>") if projector == "qwen2vl_merger" else 0
    assert tokens == len(shared) - len("[assistant]") - 1 + begins
    assert_same_up_to_noise(warm, expected, epsilon=NOISE)


@pytest.mark.parametrize("projector", ["janus_pro", "qwen2vl_merger"])
def test_image_that_was_cancelled_half_way_is_not_half_reused(files: dict[str, Path], projector: Projector) -> None:
    """Some places of an image are computed when its request ends: the next one computes them all."""
    driver = seeing(files, projector, n_batch=4, idle_cache_mb=0)
    conversation = seen("look *", png(1))
    begins = len("<|vision_start|>") if projector == "qwen2vl_merger" else 0
    before = 1 + len("[user]look ") + begins
    try:
        id = driver.converse(conversation, max_tokens=4)
        driver.run(lambda: driver.backend.progress().kv_used > before)
        assert driver.backend.progress().kv_used < before + QWEN_IMAGE_TOKENS
        driver.backend.cancel(id)
        driver.run()
        tokens, warm = cached(driver, conversation)
    finally:
        driver.close()
    cold = seeing(files, projector)
    expected = ask(cold, conversation, max_tokens=4)
    cold.close()
    assert tokens == before
    assert_same_up_to_noise(warm, expected, epsilon=NOISE)


def test_images_are_not_saved_and_texts_are(files: dict[str, Path], tmp_path: Path) -> None:
    """Unloaded and loaded again: the text comes back from the file, the image is computed once more, and right."""
    conversation, text = seen("look at the picture * well", png(1)), [BOS, *byte_tokens("a" * 60)]
    answers: list[Output] = []
    for expected in (0, 59):
        driver = seeing(files, state_dir=str(tmp_path))
        tokens, output = cached(driver, conversation)
        answers.append(output)
        id = driver.submit(text, max_tokens=4, ignore_eos=True)
        driver.run()
        driver.close()
        assert tokens == 0
        assert driver.done[id].cached_tokens >= expected
    assert answers[0].tokens == answers[1].tokens
