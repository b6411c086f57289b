"""A9: nothing is ever unpickled: not weights, not frames, not what is kept on the disk."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import zipfile
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.polling import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
EXECUTORS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "numpy.load", "np.load", "joblib.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load",
}  # fmt: skip
SUFFIXES = ["bin", "pt", "pth", "ckpt", "pkl"]


class Malicious:
    """Makes a file the moment that it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.canary),))


def pickled(canary: Path) -> bytes:
    return pickle.dumps({"weights": Malicious(canary)})


def as_torch(canary: Path) -> bytes:
    """As `torch.save` writes it: a zip with `data.pkl` in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
    return file.getvalue()


def test_canary_sings_where_it_is_unpickled(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickles")
    for suffix in SUFFIXES:
        (folder / f"model.{suffix}").write_bytes(as_torch(folder / "canary"))
    (folder / "renamed.gguf").write_bytes(pickled(folder / "canary"))
    (folder / "zipped.gguf").write_bytes(as_torch(folder / "canary"))
    for name, weights in (("bert", "pytorch_model.bin"), ("safe", "model.safetensors")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
        (folder / name / weights).write_bytes(as_torch(folder / "canary"))
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Generator[Daemon]:
    models: Json = {
        "mock": mock_model(),
        "renamed": {"backend": "llamacpp", "path": str(folder / "renamed.gguf")},
        "zipped": {"backend": "llamacpp", "path": str(folder / "zipped.gguf")},
        "bert": {"backend": "flag", "path": str(folder / "bert")},
        "safe": {"backend": "flag", "path": str(folder / "safe")},
        "mlx": {"backend": "mlx", "path": str(folder / "bert")},
    }
    with Daemon({"models": models}) as daemon:
        yield daemon


@pytest.mark.parametrize("model", ["renamed", "zipped", "bert", "safe", "mlx"])
def test_pickle_under_any_name_is_refused(daemon: Daemon, folder: Path, model: str) -> None:
    """By its first bytes where its name says something else; whoever asks is told, and nothing was executed."""
    body = {"model": model, "input": "hi"} if model in {"bert", "safe"} else {"model": model, "prompt": "hi"}
    status, answer = daemon.request("POST", "/v1/embeddings" if "input" in body else "/v1/completions", body)
    assert status in {400, 503}, answer
    assert not (folder / "canary").exists()
    assert daemon.complete("mock", max_tokens=1)[0] == 200


@pytest.mark.parametrize("name", [*(f"model.{suffix}" for suffix in SUFFIXES), "renamed.gguf", "zipped.gguf", "bert"])
def test_pickle_is_not_imported(daemon: Daemon, folder: Path, name: str) -> None:
    """`llmctl import`: the job says what it is, and keeps nothing."""
    params = {"path": str(folder / name), "mode": "copy", "name": "pickled"}
    status, job = daemon.control("POST", "/jobs", {"type": "import", "params": params})
    assert status in {200, 202}, job
    ended: list[Json] = [job]

    def over() -> bool:
        ended[:] = [daemon.control("GET", f"/jobs/{job['id']}")[1]]
        return ended[0]["state"] in {"succeeded", "failed", "cancelled"}

    eventually_sync(over, 30, "the job ends")
    assert ended[0]["state"] == "failed"
    assert "pickle" in str(ended[0]).lower() or "zip" in str(ended[0]).lower() or "no model" in str(ended[0]).lower()
    assert not (folder / "canary").exists()
    assert daemon.complete("pickled", max_tokens=1)[0] == 404


def test_no_source_imports_what_executes_data() -> None:
    """Neither by import nor by name: frames are msgspec's Structs, weights are safetensors and GGUF."""
    found: list[str] = []
    for path in sorted(path for root in ("daemon", "runtimes", "ctl") for path in (ROOT / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                names = ["pickle"]
            if EXECUTORS.intersection(names):
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)[:80]}")
    assert found == []


def test_frames_carry_no_objects() -> None:
    """Every frame is a tagged Struct of plain values: no field is of type `Any` or `object`."""
    protocol = ROOT / "runtimes/llmvisor_runtimes/protocol"
    for path in sorted(protocol.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign):
                names = {inner.id for inner in ast.walk(node.annotation) if isinstance(inner, ast.Name)}
                assert not names & {"Any", "object"}, (path.name, ast.unparse(node.annotation))
