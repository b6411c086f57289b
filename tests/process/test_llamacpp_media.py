"""Images and sounds: what the model sees of them, how they share batches and the cache, and what is refused."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise, llama_driver
from tests.support.media_reference import reference_logprobs
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import BOS, byte_tokens, write_tiny_gguf
from tests.support.tiny_lora import write_tiny_lora
from tests.support.tiny_mmproj import (
    IMAGE_TOKENS,
    SLICE_TOKENS,
    SOUND_TOKENS,
    Projector,
    png,
    png_of,
    seen,
    wav,
    write_tiny_mmproj,
)

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.llamacpp.feeds import Feed
from llmvisor_runtimes.llamacpp.media_encoder import MediaEncoder
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.llamacpp.projector import Embeddings, MediaChunk
from llmvisor_runtimes.protocol import AdapterScale, ChatMessage, ChatPrompt, ModelOptions, Resumed, Sampling

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""
MIXED_NOISE = 0.15
"""The same where the places of a sequence lie about in the cache; texts alone differ as much."""
QWEN_IMAGE_TOKENS = 9
"""Of an image of 40 by 40 with the projector of two dimensions."""
WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and a projector of each kind."""
    folder = tmp_path_factory.mktemp("models")
    made = {"tiny": write_tiny_gguf(folder / "tiny.gguf"), "mrope": write_tiny_gguf(folder / "m.gguf", mrope=True)}
    made["slices"] = write_tiny_gguf(folder / "slices.gguf", further_tokens=SLICE_TOKENS)
    for projector in ("janus_pro", "gemma3", "idefics3", "qwen2vl_merger", "ultravox"):
        made[projector] = write_tiny_mmproj(folder / f"mmproj-{projector}.gguf", projector)
    return made


def pair(files: dict[str, Path], projector: Projector) -> tuple[Path, Path]:
    return files[{"qwen2vl_merger": "mrope", "idefics3": "slices"}.get(projector, "tiny")], files[projector]


def raw(**own: object) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}


def seeing(files: dict[str, Path], projector: Projector = "janus_pro", **wanted: object) -> LlamaDriver:
    """A driver of a model beside its projector; the caller closes it. The model's own options may be among these."""
    model, mmproj = pair(files, projector)
    names = {"n_ubatch", "idle_cache_mb", "chat_template"}
    own = {name: wanted.pop(name) for name in list(wanted) if name in names}
    options = {"n_ctx": 512, "n_threads": 1, "options": raw(mmproj=str(mmproj), **own), **wanted}
    return LlamaDriver(model, msgspec.convert(options, ModelOptions))


@pytest.fixture
def driver(files: dict[str, Path]) -> Iterator[LlamaDriver]:
    made = seeing(files, idle_cache_mb=0)
    yield made
    made.close()


def ask(driver: LlamaDriver, conversation: ChatPrompt, **wanted: object) -> Output:
    """Run one conversation alone."""
    id = driver.converse(conversation, **{"max_tokens": 8, "logprobs": 5, "ignore_eos": True, **wanted})
    driver.run()
    assert id not in driver.failed, driver.failed[id]
    return driver.outputs[id, 0]


def media_of(driver: LlamaDriver) -> MediaEncoder:
    media = cast("Engine", driver.backend._engine)._media  # pyright: ignore[reportPrivateUsage]
    assert media is not None
    return media


class Gate:
    """Holds up encoding until it is opened, piece after piece as a large image does, and counts it."""

    def __init__(self, driver: LlamaDriver) -> None:
        media = media_of(driver)
        projector = media.projector
        self._between: Callable[[], bool] = media._between  # pyright: ignore[reportPrivateUsage]
        self._encode: Callable[[MediaChunk], Embeddings | None] = projector.encode
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.encoded = 0
        self.aborted = False
        projector.encode = self  # type: ignore[method-assign]

    def __call__(self, chunk: MediaChunk) -> Embeddings | None:
        self.reached.set()
        until = time.monotonic() + WAIT_SECONDS
        while not self.opened.wait(0.001):
            assert time.monotonic() < until
            if not self._between():
                self.aborted = True
                return None
        self.encoded += 1
        return self._encode(chunk)


# ------------------------------------------------------------------------------------------------------ what is seen


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


# ---------------------------------------------------------------------------------------------------- beside others


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


# --------------------------------------------------------------------------------------------------------- the cache


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


# ------------------------------------------------------------------------------------------------- what is refused


def refusal(driver: LlamaDriver, conversation: ChatPrompt) -> RequestError:
    with pytest.raises(RequestError) as caught:
        driver.converse(conversation, max_tokens=4)
    assert len(driver.generate([BOS, *byte_tokens("abc")], max_tokens=4, ignore_eos=True).tokens) == 4
    return caught.value


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_cut_image_is_refused_and_nothing_else_suffers(driver: LlamaDriver, part: float) -> None:
    """Its header is whole, the rest is not: an error that names it, and the worker goes on."""
    image = png(1, width=200, height=200)
    error = refusal(driver, seen("* and *", png(2), image[: int(len(image) * part)]))
    assert error.kind == "invalid_value"
    assert "image 2 of the conversation cannot be decoded" in error.message


@pytest.mark.parametrize("file", [b"RIFF\x10\0\0\0WEBPVP8 " + bytes(40), b"\0" * 100, b"x", b"GIF89a" + bytes(30)])
def test_file_that_is_no_image_is_refused(driver: LlamaDriver, file: bytes) -> None:
    """Formats that libmtmd does not read itself start no program, either."""
    assert "cannot be decoded" in refusal(driver, seen("*", file)).message


def test_image_that_unpacks_to_more_than_its_pixels_is_refused(driver: LlamaDriver) -> None:
    """A small file of eight by eight pixels would take gigabytes."""
    assert "cannot be decoded" in refusal(driver, seen("*", png_of(8, 8, bytes(30_000_000)))).message


def test_sound_is_refused_where_the_mmproj_only_sees(driver: LlamaDriver) -> None:
    """The message says what the model can do."""
    error = refusal(driver, seen("*", wav(1)))
    assert error.kind == "unsupported_operation"
    assert "sees images but hears no sounds" in error.message


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(wav(1, samples=10), id="too short"),
        pytest.param(b"fLaC\0\0\0\x22" + bytes(10) + b"\x0a\xc4\x40\xff" + b"\xff" * 4 + bytes(40), id="a day of FLAC"),
        pytest.param(wav(1)[:24] + b"\1\0\0\0" + wav(1)[28:], id="one sample a second"),
        pytest.param(wav(1)[:24] + b"\1\0\0\0" + wav(1)[28:32] + b"\xff\xff\x08\0" + wav(1)[36:], id="a frame of lies"),
        pytest.param(wav(1)[:36] + b"junk", id="no samples"),
        pytest.param(
            (b"\xff\xfb\x90\x00" + bytes(32) + b"Xing\0\0\0\1\0\x3f\xff\xff").ljust(417, b"\0")
            + (b"\xff\xfb\x90\x00" + bytes(413)) * 20,
            id="a day of MP3 by its tag",
        ),
        pytest.param(
            b"ID3\4\0\0\0\0\0\4\xff\xfb\x90\x00fLaC\x80\0\0\x22" + bytes(10) + b"\x0a\xc4\x40\xff" + b"\xff" * 60,
            id="a day of FLAC behind a tag",
        ),
        pytest.param(b"ID3\4\0\0\0\0\0\0" + bytes(200), id="no MP3"),
    ],
)
def test_sound_that_cannot_be_heard_is_refused(files: dict[str, Path], sound: bytes) -> None:
    """Too short, too long or cut: an error, and the worker goes on."""
    driver = seeing(files, "ultravox")
    try:
        assert refusal(driver, seen("*", sound)).kind == "invalid_value"
        assert "hears sounds but sees no images" in refusal(driver, seen("*", png(1))).message
        assert len(ask(driver, seen("*", wav(1))).tokens) == 8
    finally:
        driver.close()


def test_sounds_are_bounded_together(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a conversation are unpacked at once: two of half a second are a second."""
    monkeypatch.setattr(limits, "sounds_seconds_max", 0.9)
    driver = seeing(files, "ultravox")
    try:
        assert "together" in refusal(driver, seen("* *", wav(1), wav(2))).message
        assert len(ask(driver, seen("*", wav(1))).tokens) == 8
    finally:
        driver.close()


def test_model_without_an_mmproj_names_the_option(files: dict[str, Path]) -> None:
    """What to do about it stands in the error."""
    with llama_driver(files["tiny"]) as driver:
        assert "vision" not in driver.info.capabilities
        error = refusal(driver, seen("*", png(1)))
    assert error.kind == "unsupported_operation"
    assert "mmproj" in error.message


def test_images_beyond_the_context_are_the_usual_error(driver: LlamaDriver) -> None:
    """Forty images are more than 512 tokens."""
    error = refusal(driver, seen("*" * 40, *[png(1)] * 40))
    assert error.kind == "context_length_exceeded"


def test_image_that_must_be_computed_at_once_needs_a_batch_as_large(files: dict[str, Path]) -> None:
    """llama.cpp would end the process; the error names both options."""
    driver = seeing(files, "gemma3", n_ubatch=IMAGE_TOKENS - 1)
    try:
        error = refusal(driver, seen("*", png(1)))
    finally:
        driver.close()
    assert error.kind == "unsupported_operation"
    assert "n_ubatch" in error.message


def test_mmproj_of_a_model_with_other_tokens_is_told(files: dict[str, Path]) -> None:
    """Its embeddings fit, but the tokens that it puts around images are not there."""
    with llama_driver(files["tiny"], options=raw(mmproj=str(files["idefics3"]))) as driver:
        error = refusal(driver, seen("*", png(1)))
    assert error.kind == "unsupported_operation"
    assert "tokens that this model does not have" in error.message


def test_template_that_drops_an_image_is_told(files: dict[str, Path]) -> None:
    """No image is lost in silence."""
    driver = seeing(files, chat_template="{{ messages[-1].content }}")
    try:
        turns = [*seen("*", png(1)).messages, ChatMessage("assistant", "yes"), ChatMessage("user", "why?")]
        error = refusal(driver, ChatPrompt(turns))
    finally:
        driver.close()
    assert error.kind == "template_error"
    assert "0 of 1" in error.message


def test_prompt_with_an_image_is_not_echoed(driver: LlamaDriver) -> None:
    """There is no text to show."""
    with pytest.raises(RequestError) as caught:
        driver.converse(seen("*", png(1)), echo=True)
    assert caught.value.param == "echo"


def test_numbers_of_images_are_no_tokens_of_clients(driver: LlamaDriver) -> None:
    """They come from this process's prompts alone."""
    tokens = driver.backend.tokenize(seen("*", png(1)), add_special=True, parse_special=True)
    with pytest.raises(RequestError, match="is not in the vocabulary"):
        driver.submit(list(tokens))


def load_error(files: dict[str, Path], mmproj: Path) -> LoadError:
    with pytest.raises(LoadError) as caught, llama_driver(files["tiny"], options=raw(mmproj=str(mmproj))):
        pass
    return caught.value


def test_mmproj_that_is_none_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    """Absent, of another kind, a model instead, cut: a permanent error that names the file."""
    absent = tmp_path / "absent.gguf"
    zipped = tmp_path / "zipped.gguf"
    zipped.write_bytes(b"PK\3\4" + bytes(100))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["janus_pro"].read_bytes()[:4000])
    for path, reason in ((absent, "is no file"), (zipped, "not a GGUF"), (files["tiny"], "cannot be used"), (cut, "")):
        error = load_error(files, path)
        assert error.permanent
        assert "mmproj" in error.reason
        assert path.name in error.reason
        assert reason in error.reason


def test_model_without_a_template_loads_without_its_mmproj(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing says where images stand, and texts are served all the same; the log has the reason."""
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(files["tiny"].read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templace"))
    with llama_driver(plain, options=raw(mmproj=str(files["janus_pro"]))) as driver:
        assert "vision" not in driver.info.capabilities
        assert len(driver.generate([BOS, *byte_tokens("abc")], max_tokens=4, ignore_eos=True).tokens) == 4
    assert "the mmproj is not loaded" in capfd.readouterr().err


def test_mmproj_of_another_model_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    """Both sizes stand in the reason."""
    error = load_error(files, write_tiny_mmproj(tmp_path / "wide.gguf", dims=128))
    assert error.permanent
    assert "n_embd = 64" in error.reason
    assert "n_embd = 128" in error.reason
