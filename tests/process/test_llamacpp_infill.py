"""Filling in the middle with the tokens that a model has for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.llama_driver import LlamaDriver, llama_driver
from tests.support.tiny_gguf import BOS, INFILL_TOKENS, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import InfillPrompt

PREFIX, SUFFIX, MIDDLE = INFILL_TOKENS


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaDriver]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "infill.gguf", infill=True)
    with llama_driver(path) as driver:
        yield driver


def tokens_of(driver: LlamaDriver, prefix: str, suffix: str) -> list[int]:
    return driver.backend.tokenize(InfillPrompt(prefix, suffix), add_special=True, parse_special=True)


def test_prompt_is_prefix_suffix_middle(driver: LlamaDriver) -> None:
    """The model's own three tokens stand before the two texts and before what it is going to write."""
    expected = [BOS, PREFIX, *byte_tokens("def_f("), SUFFIX, *byte_tokens("return"), MIDDLE]
    assert tokens_of(driver, "def_f(", "return") == expected
    assert tokens_of(driver, "", "") == [BOS, PREFIX, SUFFIX, MIDDLE]


def test_special_tokens_in_the_texts_are_text(driver: LlamaDriver) -> None:
    """A file that names the model's own tokens cannot break out of its place."""
    tokens = tokens_of(driver, "<|fim_middle|>", "<|end|>")
    assert tokens == [BOS, PREFIX, *byte_tokens("<|fim_middle|>"), SUFFIX, *byte_tokens("<|end|>"), MIDDLE]


def test_it_generates_from_there(driver: LlamaDriver) -> None:
    """The suffix matters to what is written."""
    assert "infill" in driver.info.capabilities
    texts = {
        suffix: driver.generate(tokens_of(driver, "one", suffix), max_tokens=20, ignore_eos=True).tokens
        for suffix in ("two", "three")
    }
    assert len(texts["two"]) == 20
    assert texts["two"] != texts["three"]


def test_model_without_these_tokens_refuses(tmp_path: Path) -> None:
    """By the parameter that asked for it, and it does not say that it could."""
    with llama_driver(write_tiny_gguf(tmp_path / "plain.gguf")) as plain:
        assert "infill" not in plain.info.capabilities
        with pytest.raises(RequestError) as caught:
            tokens_of(plain, "one", "two")
    assert (caught.value.kind, caught.value.param) == ("unsupported_operation", "suffix")
