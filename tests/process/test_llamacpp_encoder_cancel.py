"""The llama.cpp backend as an encoder: a request that is cancelled or cannot be computed ends alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.support.encoder_driver import EXACT, TEXTS, EncoderDriver, context_of, encoder_driver
from tests.support.encoder_gguf import FIRST_LETTER, write_tiny_encoder
from tests.support.polling import eventually_sync

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.context import ABORTED
from llmvisor_runtimes.llamacpp.encoder_context import Rows

NOISE = 1e-4
"""What another order of the same sums changes in one number of a vector, generously."""
CONTEXT = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return write_tiny_encoder(models / "tiny.gguf", context_length=CONTEXT)


@pytest.fixture
def driver(tiny: Path) -> Iterator[EncoderDriver]:
    with encoder_driver(tiny, own=EXACT, n_batch=64) as driver:
        yield driver


def test_cancelled_request_ends_and_the_others_go_on(driver: EncoderDriver) -> None:
    """It ends with an empty last frame, also where somebody else wants the same texts."""
    first, second = driver.embed(*TEXTS), driver.embed(*TEXTS)
    driver.backend.cancel(first)
    driver.backend.cancel(99)
    driver.run()
    assert driver.items[first] == []
    assert len(driver.items[second]) == len(TEXTS)
    assert sorted(driver.ended) == [first, second]
    assert driver.encode("cat").shape == (1, 32)


@pytest.mark.parametrize("watched", [True, False])
def test_cancelling_aborts_what_is_being_computed(models: Path, monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    """A long text is given up between two nodes of its graph, and the next one is computed as ever."""
    monkeypatch.setattr(limits, "encoder_watched_tokens_min", 0 if watched else 10**6)
    path = write_tiny_encoder(models / "slow.gguf", context_length=4096, layers=24, dims=128)
    with encoder_driver(path, n_ctx=4096) as driver:
        before = driver.encode("cat")
        id = driver.embed([FIRST_LETTER] * 4000)
        computing = threading.Thread(target=driver.run)
        computing.start()
        eventually_sync(lambda: driver.backend.progress().active == 1)
        driver.backend.cancel(id)
        computing.join()
        assert driver.items[id] == []
        assert driver.backend.progress().tokens == 5, "the long text was not computed"
        assert np.abs(driver.encode("cat") - before).max() < NOISE


def test_abort_that_comes_late_harms_nobody(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was meant for the batch before: the text is computed again, and its request does not fail."""
    context = context_of(driver)
    encode, statuses = context.encode, [ABORTED, ABORTED]

    def interrupted(texts: Sequence[Sequence[int]]) -> int:
        return statuses.pop() if statuses else encode(texts)

    monkeypatch.setattr(context, "encode", interrupted)
    assert driver.encode("cat").shape == (1, 32)
    assert driver.failed == {}


def test_long_text_shows_that_it_goes_on(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one batch the step number rises, so that slowness is not taken for a hang."""
    driver.encode("cat")
    before = driver.backend.progress().step
    monkeypatch.setattr(limits, "encoder_watched_tokens_min", 100)
    driver.encode([FIRST_LETTER] * 120)
    assert driver.backend.progress().step > before + 10
    assert driver.backend.progress().phase == "idle"


def test_bad_text_fails_alone(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails is split until only the text that cannot be computed fails its request."""
    context = context_of(driver)
    encode = context.encode

    def fragile(texts: Sequence[Sequence[int]]) -> int:
        return -3 if any(FIRST_LETTER in text for text in texts) else encode(texts)

    monkeypatch.setattr(context, "encode", fragile)
    ids = [driver.embed(text) for text in ("cd", "ef", "a", "gh", "ij")]
    driver.run()
    assert list(driver.failed) == [ids[2]]
    assert driver.failed[ids[2]].kind == "internal_error"
    assert [len(driver.items[id]) for id in ids] == [1, 1, 0, 1, 1]


def test_vector_of_no_numbers_fails_its_request(driver: EncoderDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN never leaves the worker."""
    context = context_of(driver)
    rows = context.rows

    def without_numbers(count: int) -> Rows:
        return np.full_like(rows(count), np.nan)

    monkeypatch.setattr(context, "rows", without_numbers)
    id = driver.embed("cat")
    driver.run()
    assert "no number" in driver.failed[id].message
