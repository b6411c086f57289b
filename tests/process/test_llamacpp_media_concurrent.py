"""Images beside other requests: who shares the context with them is not kept waiting and gets its own answer,
whatever is cancelled, fails, makes way or is unloaded meanwhile.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.support.llama_driver import LlamaDriver, assert_same_up_to_noise, llama_driver
from tests.support.media_driver import WAIT_SECONDS, Gate, ask, media_files, media_of, raw, seeing
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import BOS, byte_tokens
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_mmproj import Projector, png, seen

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.llamacpp.feeds import Feed
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.protocol import AdapterScale

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""
MIXED_NOISE = 0.15
"""The same where the places of a sequence lie about in the cache; texts alone differ as much."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media_files(tmp_path_factory.mktemp("models"))


@pytest.fixture
def driver(files: dict[str, Path]) -> Iterator[LlamaDriver]:
    made = seeing(files, idle_cache_mb=0)
    yield made
    made.close()


@pytest.mark.parametrize("projector", ["janus_pro", "gemma3", "qwen2vl_merger"])
def test_images_and_texts_share_the_context(files: dict[str, Path], projector: Projector) -> None:
    """Four at once, two of them with images: each gets what it gets alone."""
    driver = seeing(files, projector, idle_cache_mb=0)
    prompts = [seen("first *", png(1)), seen("second"), seen("third * and *", png(2), png(1)), seen("fourth" * 9)]
    try:
        alone = [ask(driver, prompt, cache_prompt=False) for prompt in prompts]
        ids = [
            driver.converse(prompt, max_tokens=8, logprobs=5, ignore_eos=True, cache_prompt=False) for prompt in prompts
        ]
        driver.run()
    finally:
        driver.close()
    for id, expected in zip(ids, alone, strict=True):
        assert_same_up_to_noise(driver.outputs[id, 0], expected, epsilon=NOISE)


def test_stream_goes_on_while_an_image_is_encoded(driver: LlamaDriver) -> None:
    """Encoding is nobody's step: a text of forty tokens ends while the image is not even begun."""
    gate = Gate(driver)
    with_image = driver.converse(seen("what is *?", png(1)), max_tokens=4, ignore_eos=True)
    text = driver.submit([BOS, *byte_tokens("abc")], max_tokens=40, ignore_eos=True)
    driver.run(lambda: text in driver.done)
    assert gate.reached.wait(WAIT_SECONDS)
    assert len(driver.outputs[text, 0].tokens) == 40
    assert driver.outputs[with_image, 0].tokens == []
    assert driver.backend.delay_seconds() not in {None, 0}, "nothing to do, but it looks again"
    driver.step()
    before = driver.backend.progress()
    assert before.phase == "prefill"
    eventually_sync(lambda: driver.backend.progress().step != before.step, WAIT_SECONDS, "encoding counts as progress")
    gate.opened.set()
    driver.run()
    assert len(driver.outputs[with_image, 0].tokens) == 4


def test_guesses_are_computed_in_the_engines_turn(driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model takes all cores as well."""
    engine = cast("Engine", driver.backend._engine)  # pyright: ignore[reportPrivateUsage]
    turns = media_of(driver).turns
    assert turns is not None
    feeder = engine._feeder  # pyright: ignore[reportPrivateUsage]
    guess = feeder.with_drafts
    owners: list[str | None] = []

    def noted(feeds: list[Feed], reserved: int) -> list[Feed]:
        owners.append(turns._owner)  # pyright: ignore[reportPrivateUsage]
        return guess(feeds, reserved)

    monkeypatch.setattr(feeder, "with_drafts", noted)
    driver.generate([BOS, *byte_tokens("abcabcabc")], max_tokens=6, speculative="lookup", ignore_eos=True)
    assert set(owners) == {"engine"}


def test_adapters_have_no_turn_for_an_image_that_is_encoded(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing could be computed in it: the stream beside it goes on in every step."""
    adapter = {"path": str(write_tiny_lora(tmp_path / "terse.gguf")), "scale": 0.0}
    mmproj = str(files["janus_pro"])
    with llama_driver(files["tiny"], options=raw(mmproj=mmproj, adapters={"terse": adapter})) as driver:
        gate = Gate(driver)
        image = driver.converse(seen("what is *?", png(1)), max_tokens=4, ignore_eos=True)
        driver.run(gate.reached.is_set)
        acted: list[AdapterSet] = []
        adapters = cast("Engine", driver.backend._engine)._adapters  # pyright: ignore[reportPrivateUsage]
        act = adapters.act

        def noted(context: object, wanted: AdapterSet) -> None:
            acted.append(wanted)
            act(context, wanted)

        monkeypatch.setattr(adapters, "act", noted)
        terse = [AdapterScale("terse", 1.0)]
        text = driver.submit([BOS, *byte_tokens("abc")], max_tokens=40, ignore_eos=True, adapters=terse)
        driver.run(lambda: text in driver.done)
        gate.opened.set()
        assert set(acted) == {(("terse", 1.0),)}
        driver.run()
        assert len(driver.outputs[image, 0].tokens) == 4


def test_unloading_waits_for_what_is_being_read(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt thread decodes a picture while the model is closed: nothing is freed under its hands."""
    driver = seeing(files)
    projector = media_of(driver).projector
    reading, go_on = threading.Event(), threading.Event()
    bitmap = projector._bitmap  # pyright: ignore[reportPrivateUsage]

    def slow(file: bytes, number: int) -> int:
        reading.set()
        assert go_on.wait(WAIT_SECONDS)
        return bitmap(file, number)

    monkeypatch.setattr(projector, "_bitmap", slow)
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(len(projector.chunks("<__media__>", [png(1)]).parts)))
    closer = threading.Thread(target=driver.close)
    reader.start()
    assert reading.wait(WAIT_SECONDS)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go_on.set()
    reader.join()
    closer.join()
    assert len(found) == 1
    with pytest.raises(RequestError, match="unloaded"):
        projector.chunks("<__media__>", [png(1)])


def test_cancelled_request_does_not_wait_for_its_image(driver: LlamaDriver) -> None:
    """It ends in the next step, its image is forgotten, and the next one is served."""
    gate = Gate(driver)
    id = driver.converse(seen("what is *?", png(1)), max_tokens=4)
    driver.run(gate.reached.is_set)
    driver.backend.cancel(id)
    driver.step()
    assert driver.outputs[id, 0].finish == "cancelled"
    assert id in driver.done
    eventually_sync(lambda: gate.aborted, WAIT_SECONDS, "the encoding is given up")
    gate.opened.set()
    assert len(ask(driver, seen("and *?", png(2))).tokens) == 8
    assert gate.encoded == 1


def test_image_that_cannot_be_encoded_fails_its_request_alone(driver: LlamaDriver) -> None:
    """libmtmd says no: that request gets an error, the text beside it its text, and so does the next image."""
    projector = media_of(driver).projector
    encode, projector.encode = projector.encode, lambda _chunk: None  # type: ignore[method-assign]
    id = driver.converse(seen("what is *?", png(1)), max_tokens=4)
    text = driver.submit([BOS, *byte_tokens("abc")], max_tokens=6, ignore_eos=True)
    driver.run()
    assert driver.failed[id].kind == "internal_error"
    assert len(driver.outputs[text, 0].tokens) == 6
    projector.encode = encode  # type: ignore[method-assign]
    assert len(ask(driver, seen("what is *?", png(1))).tokens) == 8


@pytest.mark.parametrize("projector", ["janus_pro", "qwen2vl_merger"])
def test_image_that_made_way_is_computed_again(files: dict[str, Path], projector: Projector) -> None:
    """Two long answers fill the context: the younger, with its image, starts over and says the same."""
    driver = seeing(files, projector, n_ctx=160, idle_cache_mb=0)
    prompts = [seen("first *", png(1)), seen("second *", png(2))]
    wanted: dict[str, object] = {"max_tokens": 60, "logprobs": 5, "ignore_eos": True, "cache_prompt": False}
    try:
        alone = [ask(driver, prompt, **wanted) for prompt in prompts]
        ids = [driver.converse(prompt, **wanted) for prompt in prompts]
        driver.run()
    finally:
        driver.close()
    for id, expected in zip(ids, alone, strict=True):
        assert driver.outputs[id, 0].finish == "length"
        assert_same_up_to_noise(driver.outputs[id, 0], expected, epsilon=NOISE)


@pytest.mark.parametrize("projector", ["janus_pro", "gemma3", "idefics3", "qwen2vl_merger"])
@pytest.mark.parametrize("idle_cache_mb", [0, 64])
def test_many_with_images_in_a_small_context_get_what_they_get_alone(
    files: dict[str, Path], projector: Projector, idle_cache_mb: int
) -> None:
    """Prefixes shared, room made, requests cancelled at any moment, images half computed: no answer is another's."""
    chance = random.Random(projector)
    driver = seeing(files, projector, n_ctx=420, n_batch=32, idle_cache_mb=idle_cache_mb)
    texts = ["*", "one *", "one * two", "one * two *", "a text of some length that others begin with as well", "* *"]
    prompts = [seen(text, *(png(chance.randrange(3)) for _ in range(text.count("*")))) for text in texts * 2]
    wanted: dict[str, object] = {"max_tokens": 12, "logprobs": 5, "ignore_eos": True}
    try:
        alone = [ask(driver, prompt, cache_prompt=False, **wanted) for prompt in prompts]
        running: dict[int, int] = {}
        for _ in range(40):
            place = chance.randrange(len(prompts))
            running[driver.converse(prompts[place], **wanted)] = place
            for _ in range(chance.randrange(6)):
                driver.step()
            if chance.random() < 0.4:
                driver.backend.cancel(chance.choice(list(running)))
        driver.run()
        assert driver.failed == {}
    finally:
        driver.close()
    whole = [id for id in running if driver.outputs[id, 0].finish == "length"]
    assert len(whole) > 10
    for id in whole:
        assert_same_up_to_noise(driver.outputs[id, 0], alone[running[id]], epsilon=MIXED_NOISE)
