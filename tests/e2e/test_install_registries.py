"""Models from a hub and from Ollama's registry, from the search to the first answer, through a real daemon."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json
from tests.support.hub_double import HubDouble, Repository
from tests.support.installs import submit, wait_for
from tests.support.leaks import no_leaks
from tests.support.mlx_models import tiny_folder
from tests.support.ollama_double import LibraryModel, Manifest, OllamaDouble
from tests.support.split_gguf import split_gguf
from tests.support.tiny_gguf import write_tiny_gguf

TEMPLATE = b"""{{- range .Messages }}{{ if eq .Role "system" }}<<{{ .Content }}>>{{ else }}({{ .Role }}){{ .Content }}
{{- end }}{{ end }}(assistant)"""


@pytest.fixture(scope="module")
def hub() -> Generator[HubDouble]:
    with HubDouble() as double:
        yield double


@pytest.fixture(scope="module")
def ollama() -> Generator[OllamaDouble]:
    with OllamaDouble() as double:
        yield double


@pytest.fixture(scope="module")
def daemon(hub: HubDouble, ollama: OllamaDouble, tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    registries = {"huggingface": hub.url, "ollama": ollama.url, "ollama_library": ollama.url}
    env = {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_TOKEN": ""}
    with no_leaks(), Daemon({"registries": registries}, env=env) as one:
        yield one


def installed(daemon: Daemon, source: str, name: str, *, quantization: str | None = None) -> Json:
    """The model, once it is there."""
    job = wait_for(daemon, submit(daemon, "install", source=source, name=name, quantization=quantization))
    assert job["state"] == "succeeded", job
    status, model = daemon.control("GET", f"/llm/models/{name}")
    assert status == 200
    return model


def greedy(daemon: Daemon, model: str) -> str:
    status, answer = daemon.complete(model, "abc", max_tokens=12, temperature=0)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def test_split_gguf_is_installed_and_answers_as_the_whole_one(daemon: Daemon, hub: HubDouble, tmp_path: Path) -> None:
    """Chosen by its quantisation; all parts come, and the first one is loaded with the others."""
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    parts = split_gguf(whole, tmp_path, "tiny-Q8_0", tensors_max=8)
    assert len(parts) >= 3
    hub.repositories["org/tiny-GGUF"] = Repository({f"Q8_0/{part.name}": part.read_bytes() for part in parts})
    hub.repositories["org/whole-GGUF"] = Repository({"whole-Q4_K_M.gguf": whole.read_bytes()})
    model = installed(daemon, "hf:org/tiny-GGUF", "split", quantization="Q8_0")
    assert model["path"].endswith("/Q8_0/tiny-Q8_0-00001-of-0000" + f"{len(parts)}.gguf")
    assert model["size"] == sum(part.stat().st_size for part in parts)
    installed(daemon, "hf:org/whole-GGUF", "whole")
    assert greedy(daemon, "split") == greedy(daemon, "whole")


def test_mlx_folder_is_installed_and_answers(daemon: Daemon, hub: HubDouble) -> None:
    """All of its files, by their folder's own backend."""
    files = {path.name: path.read_bytes() for path in tiny_folder().iterdir() if path.is_file()}
    hub.repositories["mlx-community/tiny"] = Repository({**files, "pytorch_model.bin": b"x" * 5000}, tags=["mlx"])
    model = installed(daemon, "hf:mlx-community/tiny", "tiny-mlx")
    assert model["backend"] == "mlx"
    assert {path.name for path in Path(model["path"]).iterdir()} == {*files, "manifest.json"}
    assert daemon.complete("tiny-mlx", max_tokens=4)[0] == 200


def test_ollama_model_speaks_by_its_template_and_parameters(
    daemon: Daemon, ollama: OllamaDouble, tmp_path: Path
) -> None:
    """The layers count at load: the prompt is the template's, the context as large as the parameters say."""
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    layers = [("model", gguf), ("template", TEMPLATE), ("system", b"Brief."), ("params", b'{"num_ctx": 512}')]
    ollama.manifests["library/tiny:latest"] = Manifest(layers)
    model = installed(daemon, "ollama:tiny", "tiny-ollama")
    assert model["source"] == "ollama:tiny:latest"
    messages = [{"role": "user", "content": "Hi"}]
    status, told = daemon.request("POST", "/apply-template", {"model": "tiny-ollama", "messages": messages})
    assert (status, told["prompt"]) == (200, "<<Brief.>>(user)Hi(assistant)")
    status, answer = daemon.request(
        "POST", "/v1/chat/completions", {"model": "tiny-ollama", "messages": messages, "max_tokens": 4}
    )
    assert status == 200, answer
    assert daemon.control("GET", "/llm/models/tiny-ollama")[1]["n_ctx"] == 512
    main = Path(model["path"])
    assert hashlib.sha256(main.read_bytes()).hexdigest() == hashlib.sha256(gguf).hexdigest()
    assert (main.parent / "template.gotmpl").read_bytes() == TEMPLATE


def test_refusals_of_a_registry_end_the_job_with_what_to_do(daemon: Daemon, hub: HubDouble) -> None:
    """A gated repository, and one of pickles: the job says why, and leaves nothing."""
    hub.repositories["org/gated"] = Repository({"m-Q4_0.gguf": b"x" * 5000}, gated="manual")
    hub.repositories["org/pickles"] = Repository({"pytorch_model.bin": b"x" * 5000})
    for source, code, words in (
        ("hf:org/gated", "forbidden", "gated"),
        ("hf:org/pickles", "refused", "pickles"),
        ("hf:org/none", "not_found", "org/none"),
    ):
        job = wait_for(daemon, submit(daemon, "install", source=source, name="refused"))
        assert (job["state"], job["error_code"]) == ("failed", code)
        assert words in job["error"]
        assert job["hint"]
    assert daemon.control("GET", "/llm/models/refused")[0] == 404


def test_search_finds_in_both_registries_and_is_kept(daemon: Daemon, hub: HubDouble, ollama: OllamaDouble) -> None:
    """What can be installed, whether it fits, and from the store the second time."""
    hub.repositories["org/Findme-GGUF"] = Repository({}, gguf={"total": 10**15}, likes=5)
    ollama.library = [LibraryModel("findme", "A model.", "2M", ["1m"])]
    status, answer = daemon.control("GET", "/llm/registry/models?q=findme")
    assert status == 200, answer
    assert [(one["source"], one["fits"]) for one in answer["data"]] == [
        ("hf:org/Findme-GGUF", False),
        ("ollama:findme", True),
    ]
    asked = len(hub.asked)
    assert daemon.control("GET", "/llm/registry/models?q=FindMe")[1] == answer
    assert len(hub.asked) == asked
