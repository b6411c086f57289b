"""A4: no name, digest or revision from outside leads out of the folder of models, by whatever way it comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.polling import eventually_sync
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.errors import LlmvisorError
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.ollama_manifest import parse_manifest, parse_source
from llmvisor.models.manifest import check_installed_name

NAMES = [
    "..", ".", "../x", "../../etc/passwd", "/etc/passwd", "a/../../x", "a/b", "..\\x", "a\\b", "C:\\x", "~", "~root",
    ".hidden", "-rf", "con:1", "a\u0000b", "%2e%2e%2fx", "..%2fx", "．．／x", "\u202egpj", "a" * 300, "", " ", "a\nb",
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        yield daemon


def ended(daemon: Daemon, job: Json) -> Json:
    found: list[Json] = [job]

    def over() -> bool:
        found[:] = [daemon.control("GET", f"/jobs/{job['id']}")[1]]
        return found[0]["state"] in {"succeeded", "failed", "cancelled"}

    eventually_sync(over, 30, "the job ends")
    return found[0]


def outside(daemon: Daemon) -> list[str]:
    """All that lies in the daemon's folder, but for the shelf of models and what the daemon itself keeps."""
    own = {"run", "data", ".port", "main.log", "console.txt", "config.yaml"}
    return sorted(path.name for path in daemon.folder.iterdir() if path.name not in own)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:16]))
def test_name_of_an_import_stays_inside(daemon: Daemon, tmp_path: Path, name: str) -> None:
    """Refused, or imported below the folder of models; nothing lies anywhere else, and the file is untouched."""
    source = write_tiny_gguf(tmp_path / "source.gguf", context_length=64)
    digest = hashlib.sha256(source.read_bytes()).digest()
    params = {"path": str(source), "mode": "copy", "name": name}
    status, job = daemon.control("POST", "/jobs", {"type": "import", "params": params})
    if status in {200, 202}:
        assert ended(daemon, job)["state"] == "failed", job
    else:
        assert status in {400, 404, 409, 422}, job
    assert outside(daemon) == []
    assert not any((daemon.models_folder / "..").glob("x*"))
    assert hashlib.sha256(source.read_bytes()).digest() == digest
    if daemon.models_folder.exists():
        assert [path.name for path in daemon.models_folder.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.strip()], ids=lambda name: ascii(name[:16]))
def test_name_of_a_request_reads_no_file(daemon: Daemon, name: str) -> None:
    """A model's name in a request, a path or a deletion is looked up in a table, and never on the disk."""
    status, answer = daemon.complete(name, max_tokens=1)
    assert status in {400, 404}, answer
    body = {"type": "delete", "params": {"model": name}}
    status, answer = daemon.control("POST", "/jobs", body)
    if status in {200, 202}:
        assert ended(daemon, answer)["state"] == "failed"
    assert daemon.complete("mock", max_tokens=1)[0] == 200


@given(st.text(max_size=120))
def test_name_that_is_taken_is_one_folder(name: str) -> None:
    """Whatever text is accepted as a name is a single component, and stays below the folder that it is put in."""
    root = Path("/models")
    try:
        check_installed_name(name)
    except LlmvisorError:
        return
    assert (root / name).resolve().parent == root
    assert name == (root / name).name


DIGESTS = [
    "sha256:../../../../etc/passwd",
    "sha256-" + "0" * 64 + "/../x",
    "../" * 10 + "etc/passwd",
    "sha256:" + "0" * 63,
    "sha256:" + "g" * 64,
    "sha256:" + "0" * 64 + "\n",
    "md5:" + "0" * 32,
    "",
]


@pytest.mark.parametrize("digest", DIGESTS, ids=ascii)
def test_digest_that_is_none_is_refused_before_it_is_used(digest: str) -> None:
    """The hole that came back in Ollama in a second code path: here a manifest is read in one place."""
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 10}
    manifest = {"schemaVersion": 2, "config": layer, "layers": [layer]}
    with pytest.raises(FetchProblem):
        parse_manifest(msgspec.json.encode(manifest), parse_source("ollama:tiny"))
