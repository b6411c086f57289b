"""MLX folders that load and those that do not, and a real worker on a real model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from tests.support.llama_driver import llama_driver
from tests.support.mlx_driver import MlxDriver, mlx_driver
from tests.support.mlx_models import smollm2_folder, tiny_folder
from tests.support.models import starter_model_path
from tests.support.worker_client import Worker, text_request

from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.mlx import MlxBackend
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    ModelOptions,
    TextPrompt,
)

DEADLINE_SECONDS = 60.0
NEARLY_AS_LIKELY = 0.3
"""Between the log-probabilities of two tokens of which either engine takes another."""
TEXTS = (
    "Once upon a time there were 3 bears, and 12,345 honey pots.",
    "  two  spaces,\ttabs\n\nand lines  ",
    "Grüße aus Köln — 你好，世界 🙂",
    "def f(x):\n    return x**2  # squared",
    "<|im_start|>user\nhi<|im_end|>\n",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    copied = tmp_path / "model"
    shutil.copytree(tiny_folder(), copied)
    return copied


def load_error(path: Path, **options: object) -> LoadError:
    with pytest.raises(LoadError) as caught:
        MlxDriver(path, msgspec.convert({"n_ctx": 128, **options}, ModelOptions))
    return caught.value


def changed_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (removed("config.json"), "no config.json"),
        (removed("model.safetensors"), "no weights"),
        (removed("tokenizer.json"), "no tokenizer.json"),
        (written("config.json", "{"), "config.json cannot be read"),
        (written("config.json", "[" * 100_000), "config.json cannot be read"),
        (written("tokenizer.json", "{}"), "tokenizer.json cannot be read"),
        (written("model.safetensors", "not at all"), "cannot be loaded"),
        (changed_config(model_type="nosuchmodel"), "nosuchmodel not supported"),
        (changed_config(model_type="../llama"), "no usable model_type"),
        (changed_config(model_type=None), "no usable model_type"),
        (changed_config(hidden_size=None), "hidden_size"),
        (changed_config(num_hidden_layers=3), "cannot be loaded"),
        (changed_config(hidden_size=96), "cannot be loaded"),
        (written("chat_template.jinja", "{% for %}"), "chat template cannot be used"),
    ],
)
def test_spoilt_folder_is_refused_with_the_reason(folder: Path, spoil: Callable[[Path], None], reason: str) -> None:
    """Each says what is wrong, and that trying again is of no use."""
    spoil(folder)
    error = load_error(folder)
    assert reason in error.reason
    assert error.permanent


def test_no_code_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    """1. A folder names a Python file of its own as its model. Result: refused, and the file has not run."""
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    changed_config(model_file="own.py", auto_map={"AutoTokenizer": "own.Tokenizer"})(folder)
    error = load_error(folder)
    assert "its own code" in error.reason
    assert error.permanent
    changed_config(model_file=None)(folder)
    with mlx_driver(folder) as driver:
        assert driver.generate("Once", max_tokens=1).tokens
    assert not (tmp_path / "ran").exists()


def test_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Neither a missing folder nor a GGUF is anything for MLX."""
    assert "no model folder" in load_error(tmp_path / "absent").reason
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is a file" in load_error(tmp_path / "model.gguf").reason


def test_unknown_option_names_the_nearest() -> None:
    """A typing error costs one look at the message."""
    error = load_error(tiny_folder(), options={"idle_cache_mbs": msgspec.Raw(b"\x01")})
    assert "did you mean 'idle_cache_mb'" in error.reason


def test_settings_without_meaning_are_told_and_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    """What somebody set for nothing is named in the log; what nobody set is not."""
    with mlx_driver(tiny_folder(), use_mlock=True, n_gpu_layers=12):
        lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("ignored:")] == ["n_gpu_layers", "use_mlock"]
    with mlx_driver(tiny_folder()):
        assert "ignored:" not in capfd.readouterr().err


def test_template_of_its_own_file_goes_first(folder: Path) -> None:
    """As in transformers: `chat_template.jinja` replaces what the tokenizer's configuration has."""
    written("chat_template.jinja", "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}")(folder)
    with mlx_driver(folder) as driver:
        assert driver.backend.apply_template(_chat("hi")) == "[hi]<|im_end|>"


# --------------------------------------------------------------------------------------------------------- real weights


@pytest.mark.model
def test_smollm2_says_what_llama_cpp_says() -> None:
    """1. The starter model and the MLX folder made of it, which is the same weights in float32. 2. Both continue texts.

    Result: the same token ids for any text, the same pieces of bytes, and greedy texts that agree for the first tokens.
    llama.cpp rounds what it multiplies to eight bits: of these texts it parts from MLX after 5, 4 and not within 16
    tokens, each time between two tokens that are nearly as likely.
    """
    with llama_driver(starter_model_path()) as llama, mlx_driver(smollm2_folder()) as mlx:
        for text in TEXTS:
            prompt = TextPrompt(text)
            theirs = llama.backend.tokenize(prompt, add_special=True, parse_special=True)
            assert mlx.backend.tokenize(prompt, add_special=True, parse_special=True) == theirs
            assert mlx.backend.detokenize(theirs) == llama.backend.detokenize(theirs)
        for text, least in (("The capital of France is", 4), ("Once upon a time", 4), ("def fibonacci(n):", 12)):
            prompt = mlx.backend.tokenize(TextPrompt(text), add_special=True, parse_special=True)
            ours = mlx.generate(prompt, max_tokens=16, logprobs=5)
            theirs = llama.generate(prompt, max_tokens=16).tokens
            place = next((at for at, token in enumerate(theirs) if token != ours.tokens[at]), 16)
            assert place >= least
            if place < 16:
                likely = {top.token: top.logprob for top in ours.logprobs[place].top}
                assert max(likely.values()) - likely[theirs[place]] < NEARLY_AS_LIKELY


@pytest.mark.model
def test_worker_serves_without_any_other_engine() -> None:
    """1. A real worker loads the real model and answers.

    Result: neither torch nor any OpenMP runtime is in its memory.
    """
    with Worker("mlx") as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert hello.backend == "mlx"
        worker.send(Load("smollm2", str(smollm2_folder()), ModelOptions(n_ctx=512)))
        assert worker.receive_until(Loaded, DEADLINE_SECONDS).info.parameters == 134_515_008
        worker.send(text_request(1, "The capital of France is", max_tokens=4))
        reply = worker.collect([1], DEADLINE_SECONDS)[1]
        assert reply.text().startswith(" Paris")
        with Path(f"/proc/{worker.pid}/maps").open() as maps:
            libraries = {line.split()[-1] for line in maps if ".so" in line}
    assert not [name for name in libraries if any(sign in name for sign in ("torch", "omp", "llama", "ggml"))]


def test_worker_tells_why_a_folder_does_not_load(tmp_path: Path) -> None:
    """The reason crosses the pipe, and the worker stays well."""
    with Worker("mlx") as worker:
        worker.send(Load("absent", str(tmp_path / "absent"), ModelOptions()))
        failed = worker.receive_until(LoadFailed, DEADLINE_SECONDS)
    assert "no model folder" in failed.reason
    assert failed.permanent


def test_version_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker says hello before it loads: what is missing is told by the load."""

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert MlxBackend().version() == metadata.version("mlx-lm")
    monkeypatch.setattr(metadata, "version", absent)
    assert MlxBackend().version() == "not installed"


def test_missing_library_is_told_with_what_installs_it() -> None:
    """Without mlx-lm the reason is a command that helps."""
    program = (
        "import sys; sys.modules['mlx_lm'] = None\n"
        "from llmvisor_runtimes.process import main; sys.exit(main(sys.argv[1:]))"
    )
    with Worker("mlx", program=program) as worker:
        worker.send(Load("any", str(tiny_folder()), ModelOptions()))
        failed = worker.receive_until(LoadFailed, DEADLINE_SECONDS)
    assert "pip install 'llmvisor[mlx]'" in failed.reason
    assert failed.permanent


def _chat(text: str) -> ChatPrompt:
    return ChatPrompt([ChatMessage("user", text)])
