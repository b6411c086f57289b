"""The cache of a model outlives its process, and nothing wrong ever comes back with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.llama_driver import LlamaDriver, assert_same_up_to_noise, llama_driver
from tests.support.tiny_gguf import BOS, FIRST_BYTE, write_tiny_gguf
from tests.support.tiny_lora import write_tiny_lora
from tests.support.worker_client import GREEDY, Worker

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.parked import Parked
from llmvisor_runtimes.llamacpp.saved_state import StateFile
from llmvisor_runtimes.protocol import AdapterScale, Close, Generate, Hello, Load, Loaded, ModelOptions, TokenPrompt

NOISE = 0.02
"""What another order of the same sums changes in a log-probability, generously."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [BOS, *(FIRST_BYTE + (seed * 89 + place * (7 + seed)) % 256 for place in range(1, length))]


def cached_tokens(driver: LlamaDriver, prompt: list[int], **wanted: object) -> int:
    id = driver.submit(prompt, max_tokens=4, ignore_eos=True, **wanted)  # type: ignore[arg-type]
    driver.run()
    return driver.done[id].cached_tokens


def save_one(tiny: Path, folder: Path, **options: object) -> Path:
    """Load, compute a prompt of 100 tokens, unload; gives the file that this left."""
    with llama_driver(tiny, state_dir=str(folder), **options) as driver:
        cached_tokens(driver, prompt_of(100))
    (file,) = folder.iterdir()
    return file


# ------------------------------------------------------------------------------------------------------- it comes back


@pytest.mark.parametrize("idle_cache_mb", [512, 0])
def test_prompt_of_before_is_not_computed_again(tiny: Path, folder: Path, idle_cache_mb: int) -> None:
    """Unloaded and loaded again: what was idle and what was parked is there, and gives the same text."""
    raw = {"idle_cache_mb": msgspec.Raw(msgspec.msgpack.encode(idle_cache_mb))}
    options: dict[str, object] = {"n_ctx": 1024, "state_dir": str(folder), "options": raw}
    with llama_driver(tiny, **options) as driver:
        before = [driver.generate(prompt_of(100, seed), max_tokens=20, ignore_eos=True, logprobs=5) for seed in (1, 2)]
    with llama_driver(tiny, **options) as driver:
        for seed, expected in zip((1, 2), before, strict=True):
            id = driver.submit(prompt_of(100, seed), max_tokens=20, ignore_eos=True, logprobs=5)
            driver.run()
            assert driver.done[id].cached_tokens == 99
            assert_same_up_to_noise(driver.outputs[id, 0], expected, epsilon=NOISE)
        assert cached_tokens(driver, prompt_of(100, 3)) <= 1


def test_file_is_taken_at_load_and_written_at_close(tiny: Path, folder: Path) -> None:
    """A state that brings llama.cpp down is tried once; unused, it is kept for the next time."""
    file = save_one(tiny, folder)
    for _ in range(2):
        with llama_driver(tiny, state_dir=str(folder)) as driver:
            assert not file.exists()
            assert driver.backend.progress().tokens == 0
        assert file.exists()
    with llama_driver(tiny, state_dir=str(folder)) as driver:
        assert cached_tokens(driver, prompt_of(100)) == 99


def test_file_is_for_its_owner_alone(tiny: Path, folder: Path) -> None:
    """Prompts stand in it."""
    file = save_one(tiny, folder)
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_written_where_nothing_is_wanted(tiny: Path, tmp_path: Path, folder: Path) -> None:
    """Without a folder, without a sequence that is worth it, or for a prompt that must not be cached."""
    with llama_driver(tiny) as driver:
        cached_tokens(driver, prompt_of(100))
    with llama_driver(tiny, state_dir=str(folder)) as driver:
        cached_tokens(driver, prompt_of(8))
        cached_tokens(driver, prompt_of(100), cache_prompt=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["state"]


def test_two_models_have_a_file_each(tiny: Path, tmp_path: Path, folder: Path) -> None:
    """They share the folder and know nothing of each other."""
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=2)
    save_one(tiny, folder)
    with llama_driver(other, state_dir=str(folder)) as driver:
        assert cached_tokens(driver, prompt_of(100)) == 0
    assert len(list(folder.iterdir())) == 2
    with llama_driver(tiny, state_dir=str(folder)) as driver:
        assert cached_tokens(driver, prompt_of(100)) == 99


def test_adapters_are_told_apart_after_a_restart_too(tiny: Path, tmp_path: Path, folder: Path) -> None:
    """What was computed with one is there for it alone; another file under its name makes all of it foreign."""
    lora = write_tiny_lora(tmp_path / "terse.gguf")
    raw = {"adapters": msgspec.Raw(msgspec.msgpack.encode({"terse": {"path": str(lora), "scale": 0}}))}
    terse = [AdapterScale("terse", 1.0)]
    for expected in (0, 99):
        with llama_driver(tiny, n_ctx=1024, state_dir=str(folder), options=raw) as driver:
            assert cached_tokens(driver, prompt_of(100), adapters=terse) == expected
    with llama_driver(tiny, n_ctx=1024, state_dir=str(folder), options=raw) as driver:
        assert cached_tokens(driver, prompt_of(100)) == 0
    write_tiny_lora(lora, seed=9)
    with llama_driver(tiny, n_ctx=1024, state_dir=str(folder), options=raw) as driver:
        assert cached_tokens(driver, prompt_of(100), adapters=terse) == 0


def test_worker_that_is_told_to_close_leaves_its_cache_to_the_next(tiny: Path, folder: Path) -> None:
    """Two real processes, one after the other, each closed in order."""
    cached: list[int] = []
    for _ in range(2):
        with Worker("llamacpp") as worker:
            worker.receive_until(Hello)
            worker.send(Load("tiny", str(tiny), ModelOptions(n_ctx=512, n_threads=1, state_dir=str(folder))))
            worker.receive_until(Loaded)
            request = Generate(1, "req-1", TokenPrompt(prompt_of(100)), GREEDY, max_tokens=3, ignore_eos=True)
            done = worker.generate(request)[1].done
            assert done is not None
            cached.append(done.cached_tokens)
            worker.send(Close())
            assert worker.wait() == 0
    assert cached == [0, 99]


# --------------------------------------------------------------------------------------------- what must not come back


@pytest.mark.parametrize("place", [3, 20, 40, 60, -200, -1])
def test_damaged_file_is_removed_with_a_line_in_the_log(
    tiny: Path, folder: Path, capfd: pytest.CaptureFixture[str], place: int
) -> None:
    """One bit in its head, in a length, in the tokens, in a state, in a digest: the model loads all the same."""
    file = save_one(tiny, folder)
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 0x40
    file.write_bytes(damaged)
    assert_ignored(tiny, file, capfd)


@pytest.mark.parametrize("part", [0.0, 0.0005, 0.01, 0.5, 0.999])
def test_cut_file_is_removed_with_a_line_in_the_log(
    tiny: Path, folder: Path, capfd: pytest.CaptureFixture[str], part: float
) -> None:
    """Wherever it was cut."""
    file = save_one(tiny, folder)
    os.truncate(file, int(file.stat().st_size * part))
    assert_ignored(tiny, file, capfd)


@pytest.mark.parametrize(
    ("n_ctx", "own"), [(256, {}), (512, {"type_k": "f32"}), (512, {"type_v": "f32"}), (512, {"rope_freq_base": 2e4})]
)
def test_state_of_other_options_is_foreign(
    tiny: Path, folder: Path, capfd: pytest.CaptureFixture[str], n_ctx: int, own: dict[str, object]
) -> None:
    """Whatever changes what a token's state is."""
    file = save_one(tiny, folder)
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}
    assert_ignored(tiny, file, capfd, n_ctx=n_ctx, options=raw)


def test_state_of_another_file_at_the_same_place_is_foreign(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model was exchanged for one of the same size."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    file = save_one(path, folder)
    write_tiny_gguf(path, seed=2)
    assert_ignored(path, file, capfd)


def assert_ignored(model: Path, file: Path, capfd: pytest.CaptureFixture[str], **options: object) -> None:
    capfd.readouterr()
    with llama_driver(model, state_dir=str(file.parent), **options) as driver:
        assert f"{file.name} is of no use and removed: " in capfd.readouterr().err
        assert not file.exists()
        assert cached_tokens(driver, prompt_of(100)) == 0


def test_folder_that_cannot_be_written_holds_nothing_up(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model is unloaded as ever, and the log says why nothing was kept."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    with llama_driver(tiny, state_dir=str(blocked / "state")) as driver:
        cached_tokens(driver, prompt_of(100))
    assert "could not be saved" in capfd.readouterr().err


# -------------------------------------------------------------------------------------------------------------- bounds


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def sequences(count: int, state_bytes: int = 1000) -> Iterator[Parked]:
    for number in range(count):
        yield Parked([number, 1, 2], bytearray([number]) * state_bytes, (("terse", 0.5),))


def test_sequences_come_back_as_they_went(tmp_path: Path) -> None:
    """In their order, with their adapters, once."""
    state = StateFile(tmp_path / "x.kv", b"me")
    assert state.write(sequences(3)) == 3
    assert state.take() == list(sequences(3))
    assert state.take() == []
    assert list(tmp_path.iterdir()) == []


def test_when_time_is_up_whole_sequences_are_kept(tmp_path: Path) -> None:
    """The one under way is left out, and the file is as good as any."""
    state = StateFile(tmp_path / "x.kv", b"me", clock=Clock())
    kept = state.write(sequences(100))
    assert kept == limits.state_save_seconds_max - 1
    assert state.take() == list(sequences(int(kept)))


def test_room_and_count_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those used last come first."""
    monkeypatch.setattr(limits, "state_file_bytes_max", 3_500)
    state = StateFile(tmp_path / "x.kv", b"me")
    assert state.write(sequences(10)) == 3
    assert (tmp_path / "x.kv").stat().st_size <= 3_500
    monkeypatch.setattr(limits, "state_sequences_max", 2)
    assert state.write(sequences(10)) == 2
    assert state.take() == list(sequences(2))


def test_file_beyond_the_bound_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is removed unread."""
    state = StateFile(tmp_path / "x.kv", b"me")
    state.write(sequences(10))
    monkeypatch.setattr(limits, "state_file_bytes_max", 3_500)
    assert state.take() == []
    assert "too long" in capfd.readouterr().err


def test_nothing_to_keep_leaves_no_file(tmp_path: Path) -> None:
    """Not even an empty one."""
    assert StateFile(tmp_path / "x.kv", b"me").write([]) == 0
    assert list(tmp_path.iterdir()) == []
