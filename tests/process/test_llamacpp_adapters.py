"""LoRA adapters: chosen and scaled by each request, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.llama_driver import LlamaDriver, Output, assert_same_up_to_noise, llama_driver
from tests.support.tiny_gguf import BOS, FIRST_BYTE, write_tiny_gguf
from tests.support.tiny_lora import write_tiny_lora

from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.protocol import AdapterScale

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_gguf(folder / "tiny.gguf")
    write_tiny_lora(folder / "terse.gguf", seed=1)
    write_tiny_lora(folder / "formal.gguf", seed=2)
    return folder


def options_of(adapters: object) -> dict[str, msgspec.Raw]:
    return {"adapters": msgspec.Raw(msgspec.msgpack.encode(adapters))}


@pytest.fixture
def driver(folder: Path) -> Iterator[LlamaDriver]:
    adapters = {name: {"path": str(folder / f"{name}.gguf"), "scale": 0} for name in ("terse", "formal")}
    with llama_driver(folder / "tiny.gguf", parallel=4, n_ctx=1024, options=options_of(adapters)) as driver:
        yield driver


@pytest.fixture(scope="module")
def plain(folder: Path) -> Output:
    with llama_driver(folder / "tiny.gguf") as driver:
        return driver.generate(prompt_of(60), max_tokens=20, ignore_eos=True, logprobs=5)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *(FIRST_BYTE + (seed * 89 + place * (7 + seed)) % 256 for place in range(1, length))]


def with_scales(**scales: float) -> list[AdapterScale]:
    return [AdapterScale(name, scale) for name, scale in scales.items()]


def generate(driver: LlamaDriver, adapters: list[AdapterScale] | None, *, cache_prompt: bool = False) -> Output:
    return driver.generate(
        prompt_of(60), max_tokens=20, ignore_eos=True, logprobs=5, adapters=adapters, cache_prompt=cache_prompt
    )


def test_scale_zero_is_the_plain_model_and_one_is_not(driver: LlamaDriver, plain: Output) -> None:
    """Each request says for itself what acts, whatever acted in the one before."""
    for adapters in (None, [], with_scales(terse=0.0)):
        assert_same_up_to_noise(generate(driver, adapters), plain, epsilon=NOISE)
        changed = generate(driver, with_scales(terse=1.0))
        assert changed.tokens != plain.tokens
        assert_first_token_has_other_probability(changed, plain)
    assert "adapters" in driver.info.capabilities


def assert_first_token_has_other_probability(left: Output, right: Output) -> None:
    first, second = left.logprobs[0], right.logprobs[0]
    assert first.token != second.token or abs((first.logprob or 0) - (second.logprob or 0)) > NOISE


def test_scales_and_adapters_differ_from_each_other(driver: LlamaDriver) -> None:
    """Half as strong is something else, and so are two together; their order says nothing."""
    sets = [with_scales(terse=1), with_scales(terse=0.5), with_scales(formal=1), with_scales(terse=1, formal=1)]
    texts = [generate(driver, adapters) for adapters in sets]
    assert len({tuple(text.tokens) for text in texts}) == 4
    assert_same_up_to_noise(generate(driver, with_scales(formal=1, terse=1)), texts[3], epsilon=NOISE)


def test_scale_of_the_options_acts_where_a_request_says_nothing(folder: Path, driver: LlamaDriver) -> None:
    """And a request that names none has none."""
    options = options_of({"terse": {"path": str(folder / "terse.gguf")}})
    with llama_driver(folder / "tiny.gguf", options=options) as always:
        assert_same_up_to_noise(generate(always, None), generate(driver, with_scales(terse=1)), epsilon=NOISE)
        assert_same_up_to_noise(generate(always, []), generate(driver, None), epsilon=NOISE)


def test_requests_of_different_adapters_run_side_by_side(driver: LlamaDriver) -> None:
    """Four at once, two of them with the same: each gives what it gives alone, and nobody waits for another's end."""
    sets = [None, with_scales(terse=1), with_scales(formal=1), with_scales(terse=1)]
    ids = [
        driver.submit(prompt_of(60), max_tokens=40, ignore_eos=True, logprobs=5, adapters=adapters) for adapters in sets
    ]
    driver.run(lambda: all(len(driver.outputs[id, 0].tokens) >= 8 for id in ids))
    assert driver.order == []
    driver.run()
    for id, adapters in zip(ids, sets, strict=True):
        alone = driver.generate(
            prompt_of(60), max_tokens=40, ignore_eos=True, logprobs=5, adapters=adapters, cache_prompt=False
        )
        assert_same_up_to_noise(driver.outputs[id, 0], alone, epsilon=NOISE)


def test_what_one_adapter_computed_is_no_cache_for_another(driver: LlamaDriver, plain: Output) -> None:
    """The same prompt is computed afresh for each set, and found again by the same set; parked or not."""

    def cached(adapters: list[AdapterScale] | None, length: int = 200) -> int:
        id = driver.submit(prompt_of(length, 5), max_tokens=2, ignore_eos=True, adapters=adapters)
        driver.run()
        return driver.done[id].cached_tokens

    assert cached(None) == 0
    assert cached(with_scales(terse=1)) == 0
    assert cached(with_scales(terse=0.5)) == 0
    assert cached(with_scales(terse=1)) == 199
    assert cached(None) == 199
    assert cached(with_scales(terse=0.5)) == 199
    generate(driver, with_scales(formal=1), cache_prompt=True)
    assert_same_up_to_noise(generate(driver, None, cache_prompt=True), plain, epsilon=NOISE)
    assert_same_up_to_noise(generate(driver, None, cache_prompt=True), plain, epsilon=NOISE)


def test_long_prompt_of_another_adapter_is_not_waited_for(driver: LlamaDriver) -> None:
    """The same beginning computed with other adapters is not the same: both start at once."""
    first = driver.submit(prompt_of(400), max_tokens=9, ignore_eos=True, adapters=with_scales(terse=1))
    second = driver.submit(prompt_of(400), max_tokens=9, ignore_eos=True)
    driver.step()
    assert driver.backend.progress().active == 2
    driver.run()
    assert driver.done[first].cached_tokens == driver.done[second].cached_tokens == 0


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([AdapterScale("loud")], "'loud'; there are: terse, formal"),
        ([AdapterScale("terse"), AdapterScale("terse", 0.5)], "twice"),
        ([AdapterScale("terse", math.nan)], "finite"),
    ],
)
def test_wrong_adapters_of_a_request_are_refused(driver: LlamaDriver, adapters: list[AdapterScale], words: str) -> None:
    """With the names that there are; the next request is served."""
    with pytest.raises(RequestError) as caught:
        driver.submit(prompt_of(20), adapters=adapters)
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "adapters")
    assert words in caught.value.message
    assert len(generate(driver, None).tokens) == 20


def test_model_without_adapters_says_so(folder: Path) -> None:
    """Its capabilities and its answer."""
    with llama_driver(folder / "tiny.gguf") as driver:
        assert "adapters" not in driver.info.capabilities
        with pytest.raises(RequestError, match="there are: none"):
            driver.submit(prompt_of(20), adapters=with_scales(terse=1))


def test_adapter_that_does_not_fit_is_told(folder: Path, tmp_path: Path) -> None:
    """Absent, of another kind, of another architecture, of another size, or a model instead of an adapter."""
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"PK\x03\x04" + bytes(100))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((folder / "terse.gguf").read_bytes()[:200])
    wrong = {
        tmp_path / "absent.gguf": "is no file",
        junk: "not a GGUF",
        cut: "cannot be loaded: ",
        write_tiny_lora(tmp_path / "qwen.gguf", architecture="qwen2"): "arch mismatch",
        write_tiny_lora(tmp_path / "wide.gguf", dims=128): "cannot be loaded: ",
        folder / "tiny.gguf": "cannot be loaded: ",
    }
    for path, words in wrong.items():
        with (
            pytest.raises(LoadError) as caught,
            llama_driver(folder / "tiny.gguf", options=options_of({"terse": {"path": str(path)}})),
        ):
            pass
        assert caught.value.permanent, path
        assert "'terse'" in caught.value.reason
        assert words in caught.value.reason
        assert "no reason" not in caught.value.reason


@pytest.mark.parametrize("adapters", [{"terse": {}}, {"terse": {"path": "x", "weight": 1}}, {"terse": "x"}])
def test_wrong_option_is_told(folder: Path, adapters: object) -> None:
    """Where it stands."""
    with (
        pytest.raises(LoadError, match=r"terse|adapters") as caught,
        llama_driver(folder / "tiny.gguf", options=options_of(adapters)),
    ):
        pass
    assert caught.value.permanent
