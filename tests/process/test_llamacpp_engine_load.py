"""The llama.cpp engine loads a model: it says what the model is, options take effect, and what is wrong is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.engine_prompts import LETTERS_ONLY
from tests.support.llama_driver import LlamaDriver, llama_driver
from tests.support.tiny_gguf import VOCABULARY, write_tiny_gguf

from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, ModelOptions


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4) as driver:
        yield driver


def test_importing_the_backend_does_not_import_the_engine() -> None:
    """`version` is told without llama_cpp, which takes a while to load and cannot be unloaded."""
    code = (
        "import sys\n"
        "from llmvisor_runtimes.llamacpp import LlamaCppBackend\n"
        "print(LlamaCppBackend().version(), 'llama_cpp' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    version, *imported = result.stdout.split()
    assert version.startswith("0.3.")
    assert imported == ["False", "False"]


def test_load_tells_what_the_model_is_and_how_far_it_is(driver: LlamaDriver) -> None:
    """The facts come from the file, and the progress ends with all of its bytes."""
    info = driver.info
    assert (info.architecture, info.n_ctx, info.slots, info.vocabulary) == ("llama", 512, 4, VOCABULARY)
    assert (info.context_length, info.embedding_dimension, info.quantization) == (1024, 64, "all F32")
    assert info.capabilities == ["chat", "tools", "completions", "tokenize", "structured_output"]
    assert info.memory.kv_bytes > 0
    assert info.memory.compute_bytes > 0
    weights = [progress for progress in driver.load_progress if progress.stage == "weights"]
    assert weights[-1].done == weights[-1].total > 0
    assert [progress.done for progress in weights] == sorted(progress.done for progress in weights)


def load_error(path: Path, **options: object) -> LoadError:
    with pytest.raises(LoadError) as caught, llama_driver(path, **options):
        pass
    return caught.value


def test_missing_model_is_told(tmp_path: Path) -> None:
    """Permanently: a file does not appear by trying again."""
    error = load_error(tmp_path / "absent.gguf")
    assert error.permanent
    assert "absent.gguf" in error.reason


def test_file_of_another_kind_is_told(tmp_path: Path) -> None:
    """The reason says that it is no GGUF."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    error = load_error(path)
    assert error.permanent
    assert "not a GGUF" in error.reason


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_cut_model_is_told_with_llama_cpps_own_reason(tiny: Path, tmp_path: Path, part: float) -> None:
    """Cut in the header, in the tokens, or in the weights: an error, not the end of the process."""
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * part)])
    error = load_error(path)
    assert error.permanent
    assert "cut.gguf cannot be loaded: " in error.reason
    assert "no reason" not in error.reason


def test_garbage_after_the_magic_is_told(tmp_path: Path) -> None:
    """Absurd counts and versions are llama.cpp's errors, too."""
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 4096)
    assert load_error(path).permanent
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 4096)
    assert load_error(path).permanent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flash_atn": "on"}, "flash_attn"),
        ({"flash_attn": "maybe"}, "maybe"),
        ({"type_k": "q3"}, "type_k"),
        ({"type_v": "q8_0", "flash_attn": "off"}, "flash attention"),
        ({"n_ubatch": 0}, "n_ubatch"),
    ],
)
def test_wrong_option_is_told(tiny: Path, options: dict[str, object], words: str) -> None:
    """A key that does not exist names the nearest; a value says where it stands."""
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in options.items()}
    with pytest.raises(LoadError) as caught:
        LlamaDriver(tiny, ModelOptions(options=raw))
    assert caught.value.permanent
    assert words in caught.value.reason


def test_options_take_effect(tiny: Path) -> None:
    """A chat template of one's own, a quantized cache."""
    own = {"chat_template": "own:{{ messages[0].content }}", "type_k": "f32", "type_v": "f32"}
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in own.items()}
    driver = LlamaDriver(tiny, ModelOptions(n_ctx=256, n_threads=1, options=raw))
    with llama_driver(tiny, n_ctx=256) as plain:
        # llama.cpp names its buffers in hundredths of a MiB.
        assert driver.info.memory.kv_bytes == pytest.approx(2 * plain.info.memory.kv_bytes, rel=0.1)
        assert driver.info.chat_template_sha256 != plain.info.chat_template_sha256
    assert driver.backend.apply_template(ChatPrompt([ChatMessage("user", "hi")])) == "own:hi"
    driver.close()


def test_stop_texts_of_the_options_end_conversations(tiny: Path) -> None:
    """What a model's source says of where answers end counts as the request's own does; plain prompts go on."""
    conversation = ChatPrompt([ChatMessage("user", "hi")])
    with llama_driver(tiny) as driver:
        id = driver.converse(conversation, sampling=LETTERS_ONLY, max_tokens=12)
        driver.run()
        free = driver.outputs[id, 0]
    stop = free.text[4:6]
    with llama_driver(tiny, options={"stop": msgspec.Raw(msgspec.msgpack.encode([stop]))}) as driver:
        prompt = driver.backend.tokenize(conversation, add_special=True, parse_special=True)
        plain = driver.generate(prompt, sampling=LETTERS_ONLY, max_tokens=12)
        id = driver.converse(conversation, sampling=LETTERS_ONLY, max_tokens=12)
        driver.run()
        assert (free.finish, plain.finish, driver.outputs[id, 0].finish) == ("length", "length", "stop")
        assert driver.outputs[id, 0].text == free.text[: free.text.index(stop)]


def test_context_beyond_what_the_model_was_trained_for_is_warned_of(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It loads, and the log says what to expect."""
    with llama_driver(tiny, n_ctx=2048):
        pass
    assert "trained for 1024 tokens" in capfd.readouterr().err
