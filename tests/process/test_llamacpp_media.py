"""Images and sounds: what the model sees and hears of them, and how many tokens they count for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise
from tests.support.media_driver import Gate, ask, media_files, pair, seeing
from tests.support.media_reference import reference_logprobs
from tests.support.tiny_mmproj import IMAGE_TOKENS, SOUND_TOKENS, Projector, png, seen, wav

from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.protocol import Resumed, Sampling

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media_files(tmp_path_factory.mktemp("models"))


@pytest.fixture
def driver(files: dict[str, Path]) -> Iterator[LlamaDriver]:
    made = seeing(files, idle_cache_mb=0)
    yield made
    made.close()


def assert_as_reference(files: dict[str, Path], projector: Projector, output: Output, text: str, *media: bytes) -> None:
    rendered = f"[user]{text.replace('*', '<__media__>')}<|end|>[assistant]"
    expected = reference_logprobs(*pair(files, projector), rendered, media, output.tokens)
    found = [one.logprob for one in output.logprobs]
    assert len(found) == len(expected) == 8
    assert found == pytest.approx(expected, abs=NOISE)


@pytest.mark.parametrize("projector", ["janus_pro", "gemma3", "qwen2vl_merger", "ultravox"])
@pytest.mark.parametrize("n_batch", [512, 16])
def test_answer_is_that_of_llama_cpps_own_helper(files: dict[str, Path], projector: Projector, n_batch: int) -> None:
    """Text before, between and behind, in one batch or in pieces: each token is as likely as mtmd's helper finds it."""
    make = wav if projector == "ultravox" else png
    driver = seeing(files, projector, n_batch=n_batch)
    try:
        output = ask(driver, seen("look at * and at * well", make(1), make(2)))
    finally:
        driver.close()
    assert_as_reference(files, projector, output, "look at * and at * well", make(1), make(2))


@pytest.mark.parametrize("projector", ["janus_pro", "qwen2vl_merger"])
def test_image_is_computed_in_pieces_where_a_batch_is_small(files: dict[str, Path], projector: Projector) -> None:
    """Fewer tokens in a batch than an image has: nothing else comes of it."""
    driver = seeing(files, projector, n_batch=5)
    try:
        output = ask(driver, seen("look at * well", png(1)))
    finally:
        driver.close()
    assert_as_reference(files, projector, output, "look at * well", png(1))


def test_wide_image_has_its_places_in_two_dimensions(files: dict[str, Path]) -> None:
    """With M-RoPE an image takes as many positions as its longer side, and text goes on behind them."""
    image = png(3, width=100, height=33)
    driver = seeing(files, "qwen2vl_merger")
    try:
        output = ask(driver, seen("* wide", image))
    finally:
        driver.close()
    assert_as_reference(files, "qwen2vl_merger", output, "* wide", image)


@pytest.mark.parametrize("n_batch", [512, 9])
def test_image_in_slices_is_several_units(files: dict[str, Path], n_batch: int) -> None:
    """An overview and four slices with tokens between; the same image twice, and another."""
    driver = seeing(files, "idefics3", n_batch=n_batch)
    media = png(1), png(1), png(2)
    try:
        tokens = driver.backend.tokenize(seen("* and * and *", *media), add_special=True, parse_special=True)
        output = ask(driver, seen("* and * and *", *media))
    finally:
        driver.close()
    assert sum(token < 0 for token in tokens) == 3 * 5 * IMAGE_TOKENS
    assert_as_reference(files, "idefics3", output, "* and * and *", *media)


def test_another_image_gives_another_answer_and_the_same_the_same(driver: LlamaDriver) -> None:
    """What is asked about an image depends on the image."""
    first = ask(driver, seen("what is *?", png(1)), cache_prompt=False)
    again = ask(driver, seen("what is *?", png(1)), cache_prompt=False)
    other = ask(driver, seen("what is *?", png(2)), cache_prompt=False)
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens


def test_image_may_come_last(files: dict[str, Path]) -> None:
    """Without a word behind it the answer begins with what the image's last place predicts."""
    outputs: list[Output] = []
    for n_batch in (512, 7):
        driver = seeing(files, n_batch=n_batch, chat_template="{{ messages[0].content }}")
        outputs += [ask(driver, seen("see *", png(1))), ask(driver, seen("see *", png(2)))]
        driver.close()
    assert outputs[0].tokens != outputs[1].tokens
    assert_same_up_to_noise(outputs[0], outputs[2], epsilon=NOISE)


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"], ids=["text behind it", "at the end"])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1, seed=3, mirostat=2)])
def test_answer_goes_on_in_another_worker(files: dict[str, Path], template: str | None, sampling: Sampling) -> None:
    """1. A worker has sent some tokens of an answer about an image. Result: another one goes on as this one would."""
    wanted = {"sampling": sampling, "stop": ["a text that does not come"]}
    driver = seeing(files, chat_template=template)
    whole = ask(driver, seen("see *", png(1)), **wanted)
    driver.close()
    for cut in (1, 5):
        driver = seeing(files, chat_template=template)
        rest = ask(driver, seen("see *", png(1)), **wanted, resumed=[Resumed(whole.tokens[:cut])])
        driver.close()
        rest.tokens = whole.tokens[:cut] + rest.tokens
        rest.logprobs = whole.logprobs[: len(whole.logprobs) - len(rest.logprobs)] + rest.logprobs
        assert_same_up_to_noise(whole, rest, epsilon=NOISE)


def test_choices_share_an_image(driver: LlamaDriver) -> None:
    """Three choices of one request: the image is encoded once, and greedy ones agree."""
    gate = Gate(driver)
    gate.opened.set()
    id = driver.converse(seen("what is *?", png(1)), n=3, max_tokens=6, ignore_eos=True)
    driver.run()
    assert gate.encoded == 1
    assert driver.outputs[id, 0].tokens == driver.outputs[id, 1].tokens == driver.outputs[id, 2].tokens


def test_embeddings_are_forgotten_where_the_next_choice_has_them_from_the_cache(driver: LlamaDriver) -> None:
    """Two images, three choices: while they are answered nothing is kept of what the context has."""
    gate = Gate(driver)
    gate.opened.set()
    id = driver.converse(seen("* and *", png(1), png(2)), n=3, max_tokens=9, ignore_eos=True)
    driver.run(lambda: len(driver.outputs[id, 2].tokens) > 1)
    requests = cast("Engine", driver.backend._engine)._requests  # pyright: ignore[reportPrivateUsage]
    assert [unit.embeddings for unit in requests[id].units] == [None, None]
    driver.run()
    assert gate.encoded == 2
    assert len(driver.outputs[id, 0].tokens) == 9


def test_seed_gives_the_same_text_from_a_warm_cache(driver: LlamaDriver) -> None:
    """An image that comes from the cache is the image that was computed."""
    sampling = Sampling(temperature=1.0, seed=7)
    texts = [ask(driver, seen("what is *?", png(1)), sampling=sampling).tokens for _ in range(3)]
    assert texts[0] == texts[1] == texts[2]


def test_usage_and_tokenize_count_an_image(driver: LlamaDriver) -> None:
    """An image counts for as many tokens as it takes places."""
    with_image = seen("what is *?", png(1))
    tokens = driver.backend.tokenize(with_image, add_special=True, parse_special=True)
    text, pieces = driver.backend.detokenize(tokens)
    without = driver.backend.tokenize(seen("what is ?"), add_special=True, parse_special=True)
    assert len(tokens) == len(pieces) == len(without) + IMAGE_TOKENS
    assert text.endswith("what is ?<|end|>[assistant]")
    id = driver.converse(with_image, max_tokens=1)
    driver.run()
    assert driver.done[id].prompt_tokens == len(tokens)


def test_sound_takes_places_too(files: dict[str, Path]) -> None:
    """The model says that it hears, and a sound counts."""
    driver = seeing(files, "ultravox")
    try:
        assert "audio" in driver.info.capabilities
        assert "vision" not in driver.info.capabilities
        tokens = driver.backend.tokenize(seen("*", wav(1)), add_special=True, parse_special=True)
        without = driver.backend.tokenize(seen(""), add_special=True, parse_special=True)
        assert len(tokens) == len(without) + SOUND_TOKENS
    finally:
        driver.close()
