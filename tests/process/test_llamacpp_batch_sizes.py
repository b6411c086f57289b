"""Batches of any size: fewer tokens than there are sequences is slow, and nothing worse."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.llama_driver import Output, llama_driver
from tests.support.tiny_gguf import BOS, byte_tokens, write_tiny_gguf


@pytest.mark.parametrize("n_batch", [1, 3, 19])
def test_batch_smaller_than_the_number_of_sequences_gives_the_same(tmp_path: Path, n_batch: int) -> None:
    """llama.cpp ends a process that asks for fewer rows of logits than sequences; four requests get what they get."""
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    answers: list[list[Output]] = []
    for size in (n_batch, 512):
        with llama_driver(model, n_batch=size) as driver:
            prompts = [[BOS, *byte_tokens("abcdefg" * 5 + str(number))] for number in range(4)]
            ids = [driver.submit(prompt, max_tokens=4, ignore_eos=True) for prompt in prompts]
            driver.run()
            answers.append([driver.outputs[id, 0] for id in ids])
    assert [one.tokens for one in answers[0]] == [one.tokens for one in answers[1]]
