"""Models from a hub, through the real huggingface_hub, against a double that speaks the hub's protocol.

The files that make up a model come and no others, as GGUF, MLX folders or encoders; what is told of them is enough to
fetch them again, and to see that nothing is new. The token goes to the hub alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import huggingface_hub
import msgspec
import pytest
from tests.support.hub_double import COMMIT, TOKEN, HubDouble, Repository
from tests.support.hub_trial import CONFIG, Trial, hub_without_login
from tests.support.tiny_gguf import write_tiny_gguf

from llmvisor.fetch.protocol import Unchanged
from llmvisor.models.folders import read_folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[HubDouble]:
    with hub_without_login(monkeypatch, tmp_path) as double:
        yield double


@pytest.fixture
def trial(hub: HubDouble, tmp_path: Path) -> Trial:
    return Trial(hub, tmp_path / "staging")


async def test_gguf_comes_whole_with_its_source_name_and_revision(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """The default quantisation is fetched, and what is told of it is enough to fetch it again."""
    files = {"Tiny-Q8_0.gguf": gguf + b"8", "Tiny-Q4_K_M.gguf": gguf, "README.md": b"#", ".gitattributes": b"x"}
    hub.repositories["Some-Org/Tiny-Instruct-GGUF"] = Repository(files)
    got = await trial.fetched("hf:Some-Org/Tiny-Instruct-GGUF")
    assert trial.files() == {"Tiny-Q4_K_M.gguf": gguf}
    assert got.main == "Tiny-Q4_K_M.gguf"
    assert got.source == "hf:Some-Org/Tiny-Instruct-GGUF:Tiny-Q4_K_M.gguf"
    assert (got.name, got.publisher) == ("tiny-instruct", "Some-Org")
    assert [(one.path, one.size, one.sha256) for one in got.files] == [
        ("Tiny-Q4_K_M.gguf", len(gguf), hashlib.sha256(gguf).hexdigest())
    ]
    assert trial.progress[0].stage == "resolving"
    again = await trial.run(got.source, known_revision=got.revision)
    assert again == Unchanged(got.revision)


async def test_bytes_come_from_the_contents_host_without_the_token(
    hub: HubDouble, trial: Trial, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub sees the token, and the host that it redirects to does not."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, private=True)
    await trial.fetched("hf:o/m")
    resolved = hub.asked_of("/o/m/resolve/")
    assert {one.headers.get("Authorization") for one in resolved} == {f"Bearer {TOKEN}"}
    assert all(one.path.startswith(f"/o/m/resolve/{COMMIT}/") for one in resolved)
    served = hub.asked_of("/cdn/", "GET")
    assert served
    assert all("Authorization" not in one.headers for one in served)


async def test_login_file_of_the_library_is_enough(
    hub: HubDouble, trial: Trial, gguf: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever ran `hf auth login` needs no HF_TOKEN."""
    login = tmp_path / "token"
    login.write_text(TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(login))
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf}, gated="manual", granted=True)
    await trial.fetched("hf:o/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_split_gguf_comes_with_all_parts_and_its_projector(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """Asked by quantisation, in a folder of its own name; the first part is the one to load."""
    parts = {f"Q8_0/Big-00{n:03}-of-00003.gguf": gguf + bytes([n]) for n in (1, 2, 3)}
    files = {**parts, "mmproj-Big-F16.gguf": gguf + b"p", "mmproj-Big-F32.gguf": gguf + b"q", "Big-Q2_K.gguf": gguf}
    hub.repositories["o/big-GGUF"] = Repository({**files, "imatrix.gguf": gguf})
    got = await trial.fetched("hf:o/big-GGUF", quantization="q8_0")
    assert trial.files() == {**parts, "mmproj-Big-F16.gguf": gguf + b"p"}
    assert got.main == "Q8_0/Big-00001-of-00003.gguf"
    assert {name: msgspec.json.decode(value) for name, value in got.options.items()} == {
        "mmproj": "mmproj-Big-F16.gguf"
    }


async def test_mlx_folder_comes_whole_without_what_is_for_others(hub: HubDouble, trial: Trial) -> None:
    """Safetensors, JSON and the tokenizer's files, whatever else lies beside them."""
    wanted = {
        "config.json": CONFIG,
        "model-00001-of-00002.safetensors": b"a" * 5000,
        "model-00002-of-00002.safetensors": b"b" * 5000,
        "model.safetensors.index.json": b"{}",
        "tokenizer.json": b'{"t":1}',
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ messages }}",
        "1_Pooling/config.json": b"{}",
    }
    unwanted = ("pytorch_model.bin", "model.py", "onnx/model.onnx", "onnx/config.json", "README.md", ".hidden.json")
    hub.repositories["mlx-community/tiny-4bit"] = Repository(
        {**wanted, **dict.fromkeys(unwanted, b"x" * 2000), "manifest.json": b"{}"}
    )
    got = await trial.fetched("hf:mlx-community/tiny-4bit")
    assert trial.files() == wanted
    assert (got.main, got.source, got.name) == ("", "hf:mlx-community/tiny-4bit", "tiny-4bit")
    assert {one.path for one in got.files} == set(wanted)


async def test_revision_follows_the_files_and_not_the_commit(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """A commit that touches only the description brings nothing; one that touches the weights does."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf, "README.md": b"a"})
    first = await trial.fetched("hf:o/m")
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf, "README.md": b"b"}, commit="a" * 40)
    assert await trial.run("hf:o/m", known_revision=first.revision) == Unchanged(first.revision)
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf + b"2"}, commit="b" * 40)
    second = await trial.fetched("hf:o/m", known_revision=first.revision)
    assert second.revision != first.revision
    assert trial.files() == {"m-Q4_0.gguf": gguf + b"2"}


async def test_revision_in_the_source_is_the_one_that_is_listed(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """`hf:org/repo@commit` stays at that commit, and the source that is kept says so too."""
    hub.repositories["o/m"] = Repository({"m-Q4_0.gguf": gguf})
    got = await trial.fetched(f"hf:o/m@{COMMIT}")
    assert got.source == f"hf:o/m@{COMMIT}:m-Q4_0.gguf"
    problem = await trial.problem("hf:o/m@v9")
    assert problem.kind == "not_found"


async def test_encoder_comes_as_a_folder_that_its_backend_knows(hub: HubDouble, trial: Trial) -> None:
    """An embedding model as FlagEmbedding and sentence-transformers keep it, without pickled heads."""
    files = {
        "config.json": json.dumps({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}).encode(),
        "model.safetensors": b"w" * 5000,
        "modules.json": json.dumps([{"type": "sentence_transformers.models.Pooling"}]).encode(),
        "1_Pooling/config.json": b"{}",
        "sentencepiece.bpe.model": b"s" * 3000,
        "tokenizer_config.json": b"{}",
    }
    hub.repositories["o/encoder"] = Repository({**files, "colbert_linear.pt": b"p" * 2000, "onnx/model.onnx": b"o"})
    await trial.fetched("hf:o/encoder")
    assert trial.files() == files
    folder = read_folder(trial.staging)
    assert (folder.backend, folder.type) == ("flag", "embeddings")


async def test_renamed_repository_is_found_by_its_old_name(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """The hub redirects, for its listing and its files."""
    hub.repositories["new/m"] = Repository({"m-Q4_0.gguf": gguf})
    hub.renamed["old/m"] = "new/m"
    await trial.fetched("hf:old/m")
    assert trial.files() == {"m-Q4_0.gguf": gguf}


async def test_quantization_stands_in_the_source_as_elsewhere(hub: HubDouble, trial: Trial, gguf: bytes) -> None:
    """`hf:org/repo:Q8_0`; the source that is kept names the file."""
    hub.repositories["o/m"] = Repository({"m-Q4_K_M.gguf": gguf, "m-Q8_0.gguf": gguf + b"8"})
    got = await trial.fetched("hf:o/m:Q8_0")
    assert (got.source, got.main) == ("hf:o/m:m-Q8_0.gguf", "m-Q8_0.gguf")
