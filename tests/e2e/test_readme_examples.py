"""What the README shows is run as it stands there, against a real daemon: it cannot rot unnoticed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.daemon import Daemon, starter_model, stream
from tests.support.flag_models import bge_m3_folder, reranker_folder
from tests.support.hub_double import HubDouble, Repository
from tests.support.leaks import no_leaks
from tests.support.llmctl_process import command, environment, llmctl
from tests.support.ollama_double import Manifest, OllamaDouble
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.model

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
RUN_SECONDS_MAX = 60


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def console_lines() -> list[list[str]]:
    """What it tells people to type, each split into words; comments are left out."""
    text = "".join(blocks("console")).replace("\\\n", " ")
    return [shlex.split(line[2:], comments=True) for line in text.splitlines() if line.startswith("$ ")]


CURL = [words for words in console_lines() if words[0] == "curl"]
LLMCTL = [words[1:] for words in console_lines() if words[0].endswith("llmctl")]


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, str]]:
    """A hub and Ollama's registry with what the README asks of them."""
    tiny = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf").read_bytes()
    with HubDouble() as hub, OllamaDouble() as ollama:
        hub.repositories["bartowski/Qwen2.5-7B-Instruct-GGUF"] = Repository({"Qwen2.5-7B-Instruct-Q4_K_M.gguf": tiny})
        ollama.manifests["library/llama3.2:3b"] = Manifest([("model", tiny)])
        yield {"huggingface": hub.url, "ollama": ollama.url, "ollama_library": ollama.url}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's folder, with the file that the README imports."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "Downloads").mkdir()
    write_tiny_gguf(folder / "Downloads" / "model.gguf")
    return folder


@pytest.fixture(scope="module")
def daemon(registries: dict[str, str], home: Path) -> Generator[Daemon]:
    models = {
        # One thread each: what shares cores with other tests waits for its own threads otherwise.
        "smollm2": starter_model(n_ctx=2048, parallel=2, n_threads=1),
        "m3": {"path": str(bge_m3_folder()), "tier": "embedding", "n_threads": 1},
        "ranker": {"path": str(reranker_folder()), "tier": "reranker", "n_threads": 1},
    }
    env = {"HF_HOME": str(home), "HF_TOKEN": ""}
    with no_leaks(), Daemon({"models": models, "registries": registries}, env=env) as one:
        yield one


def test_readme_has_what_is_run_here() -> None:
    """Its blocks are found: a title or a fence that changes does not switch these tests off."""
    paths = {word.rpartition(":8000")[2].removeprefix("$URL") for words in CURL for word in words if "/v1/" in word}
    assert paths == {"/v1/chat/completions", "/v1/embeddings", "/v1/rerank"}
    assert {words[0] for words in LLMCTL} >= {"status", "chat", "logs", "search", "install", "import"}
    assert len(blocks("python")) == 2
    assert len(blocks("yaml")) >= 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("words", CURL, ids=lambda words: next(word for word in words if "/v1/" in word))
def test_curl_line_is_answered(daemon: Daemon, words: list[str]) -> None:
    """As typed, but for the address: text, vectors or an order comes back."""
    typed = [word.replace(ADDRESS, daemon.url).replace("$URL", daemon.url) for word in words]
    ended = subprocess.run([*typed, "--silent"], capture_output=True, check=True, timeout=RUN_SECONDS_MAX)
    answer = json.loads(ended.stdout)
    assert "error" not in answer
    if "choices" in answer:
        assert answer["choices"][0]["message"]["content"]
    elif "results" in answer:
        assert {one["index"] for one in answer["results"]} == {0, 1}
    else:
        assert answer["data"][0]["embedding"]
        assert answer["data"][0]["sparse_embedding"]


def test_python_blocks_run_one_after_another(daemon: Daemon) -> None:
    """The first streams text to its output; what the second ends with is an object of its class."""
    first, second = blocks("python")
    *statements, last = second.strip().splitlines()
    shown = f"print('\\n---', type({last.partition('#')[0].strip()}).__name__)\nclient.close()\n"
    program = "\n".join([first.replace(ADDRESS, daemon.url), *statements, shown])
    assert daemon.url in program
    # A process of its own, as a reader would have it; a small model may talk for as long as it is let.
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=RUN_SECONDS_MAX
    )
    assert ended.returncode == 0, ended.stderr
    said, _, kind = ended.stdout.partition("\n---")
    assert said.strip()
    assert kind.strip() == "City"


def run_llmctl(daemon: Daemon, words: list[str], stdin: bytes | None) -> str:
    ended = llmctl(daemon.socket_path, *words, stdin=stdin, cwd=daemon.folder)
    assert ended.code == 0, ended
    return ended.stdout


@pytest.mark.parametrize("words", [words for words in LLMCTL if "-f" not in words], ids=" ".join)
def test_llmctl_line_does_something(daemon: Daemon, home: Path, words: list[str]) -> None:
    """It ends well and prints something; what asks for a word gets one."""
    typed = [f"{home}{word[1:]}" if word.startswith("~/") else word for word in words]
    shown = run_llmctl(daemon, typed, b"Say hello.\n" if words[0] == "chat" else None)
    assert shown.strip()


@pytest.mark.parametrize("words", [words for words in LLMCTL if "-f" in words], ids=" ".join)
def test_llmctl_line_that_follows_goes_on(daemon: Daemon, words: list[str]) -> None:
    """It shows what is there and what comes, until it is ended."""
    output = daemon.folder / "followed.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(command(*words), stdout=file, stderr=file, env=environment(daemon.socket_path))
    try:
        daemon.request("GET", "/v1/models", None, **{"X-Request-Id": "followed-1"})
        eventually_sync(lambda: b"followed-1" in output.read_bytes(), 20)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "models:" in block], ids=lambda _: "yaml")
def test_configuration_is_accepted(daemon: Daemon, block: str) -> None:
    """`llmctl config check` finds no key that there is not; a model's file may be missing here."""
    file = daemon.folder / "example.yaml"
    file.write_text(block)
    ended = llmctl(daemon.socket_path, "config", "check", str(file), cwd=daemon.folder)
    assert ended.code == 0, ended


def test_words_of_llmctl_in_the_text_exist(daemon: Daemon) -> None:
    """Each `llmctl …` between backticks is a command, with options that it knows."""
    lines = {line.split("`")[0] for line in re.findall(r"`llmctl ([^`]+)`", README)}
    assert len(lines) > 8
    for line in sorted(lines):
        words = ["x" if word.isupper() else word for word in line.split()]
        ended = llmctl(daemon.socket_path, *words, "--help")
        assert ended.code == 0, (line, ended.stderr)
        for option in (word for word in words if word.startswith("--")):
            assert option in ended.stdout, line


def test_mock_of_the_readme_has_its_fault() -> None:
    """1. A daemon runs with the README's mock. 2. The README's request is sent, with the README's header. Result: three
    tokens, then its end."""
    (block,) = [block for block in blocks("yaml") if "backend: mock" in block]
    (request,) = [json.loads(text) for text in re.findall(r'`(\{"model": "mock".*?\})`', README)]
    models: dict[str, Any] = yaml.safe_load(block)["models"]
    assert "`X-LLMVISOR-Resume: off`; without it" in README
    off = {"X-LLMVISOR-Resume": "off"}
    with Daemon({"models": models}) as daemon, stream(daemon, **request, headers=off) as client:
        events = [json.loads(event) for event in client.events()]
    assert events[-1]["error"]["type"] == "model_error"
    assert sum(bool(event.get("choices") and event["choices"][0]["text"]) for event in events) == 3


def test_package_extras_of_the_readme_exist() -> None:
    """`pip install 'llmvisor[…]'` names extras of the package."""
    named = {name for names in re.findall(r"llmvisor\[([\w,]+)\]", README) for name in names.split(",")}
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert named
    for name in named:
        assert re.search(rf"^{name} = \[", pyproject, re.MULTILINE), name
