"""Importing what lies on this machine: copied, moved or linked, whole and checked, or refused with a reason."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from tests.support.gguf_bytes import METADATA, U16, gguf, number, string
from tests.support.polling import eventually

from llmvisor.fetch import copying, local
from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.originals import remove_originals
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged
from llmvisor.models.manifest import fetched_problem

GGUF = gguf()
SHA256 = hashlib.sha256(GGUF).hexdigest()
SAFETENSORS = (2).to_bytes(8, "little") + b"{}" + bytes(100)
LLAMA = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
M3 = json.dumps({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}).encode()


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "data/models/.staging/job"
    folder.mkdir(parents=True)
    return folder


def files(at: Path, **contents: bytes) -> Path:
    """A folder of files; `__` in a name is a dot, `___` a slash, `_n_` a hyphen."""
    at.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = at / name.replace("___", "/").replace("__", ".").replace("_n_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return at


def split(number_of: int, count: int) -> bytes:
    extra = {"split.count": number(U16, count), "split.no": number(U16, number_of - 1)}
    return gguf({**METADATA, **extra}) if number_of == 1 else gguf({"general.architecture": string("llama")} | extra)


async def bring(path: Path | str, staging: Path, **fields: object) -> Fetched | Unchanged:
    request = FetchRequest(f"file:{path}", str(staging), **fields)  # pyright: ignore[reportArgumentType]
    progress: list[FetchProgress] = []
    async with open_session() as session:
        answer = await local.fetch(request, session=session, report=progress.append)
    assert progress
    return answer


async def brought(path: Path | str, staging: Path, **fields: object) -> Fetched:
    """What came, of which every file is where and what it should be."""
    fetched = await bring(path, staging, **fields)
    assert isinstance(fetched, Fetched)
    assert fetched_problem(fetched) is None
    root = staging if fetched.linked_to is None else Path(fetched.linked_to)
    root = root.parent if root.is_file() else root
    for file in fetched.files:
        content = (root / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    return fetched


def held(staging: Path) -> list[str]:
    """The files that lie in it."""
    return sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())


async def refused(path: Path | str, staging: Path, **fields: object) -> FetchProblem:
    with pytest.raises(FetchProblem) as caught:
        await bring(path, staging, **fields)
    assert caught.value.hint
    assert held(staging) == []
    return caught.value


# ------------------------------------------------------------------------------------------------------ a GGUF


async def test_file_is_copied(tmp_path: Path, staging: Path) -> None:
    """The original stays, the copy has its time, and the model is named by it."""
    path = files(tmp_path, My_n_Model__Q4_K_M__gguf=GGUF) / "My-Model.Q4_K_M.gguf"
    fetched = await brought(path, staging)
    assert (fetched.main, fetched.name, fetched.revision) == (path.name, "my-model.q4_k_m", SHA256[:12])
    assert (fetched.source, fetched.description) == (f"file:{path}", "Tiny")
    assert path.read_bytes() == GGUF
    assert (staging / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns
    assert not (staging / path.name).samefile(path)


async def test_file_is_moved_only_once_it_is_in_place(tmp_path: Path, staging: Path) -> None:
    """On one disk nothing is copied; the original's name goes when the model has its own, and not before."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    fetched = await brought(path, staging, mode="move")
    assert (staging / "m.gguf").samefile(path)
    remove_originals(fetched, staging)
    assert not path.exists()
    assert (staging / "m.gguf").read_bytes() == GGUF


async def test_original_that_was_changed_since_stays(tmp_path: Path, staging: Path) -> None:
    """What the model does not hold is not removed."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    fetched = await brought(path, staging)
    path.write_bytes(GGUF[::-1])
    os.utime(path, (1, 1))
    remove_originals(fetched, staging)
    assert path.read_bytes() == GGUF[::-1]


async def test_file_is_moved_to_another_disk_by_a_copy(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a second name cannot be given, as across file systems."""

    def link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    fetched = await brought(path, staging, mode="move")
    assert not (staging / "m.gguf").samefile(path)
    remove_originals(fetched, staging)
    assert not path.exists()


async def test_file_is_linked_where_it_stays(tmp_path: Path, staging: Path) -> None:
    """Nothing is written, and the answer says where it is."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    fetched = await brought(path, staging, mode="link")
    assert (fetched.linked_to, held(staging)) == (str(path), [])


async def test_link_to_a_file_keeps_its_own_name(tmp_path: Path, staging: Path) -> None:
    """A hub's cache has files under their checksums, and links with their names."""
    files(tmp_path, blobs___abc=GGUF, snapshots___x=b"")
    (tmp_path / "snapshots/m.gguf").symlink_to("../blobs/abc")
    for mode in ("copy", "move", "link"):
        fetched = await brought(tmp_path / "snapshots/m.gguf", staging, mode=mode)
        assert (fetched.name, fetched.main) == ("m", "m.gguf")
        assert not (staging / "m.gguf").is_symlink()
    remove_originals(fetched, staging)
    assert (tmp_path / "blobs/abc").exists()


async def test_split_file_comes_with_all_of_its_parts(tmp_path: Path, staging: Path) -> None:
    """Whichever of them is named."""
    parts = {f"m_n_0000{part}_n_of_n_00003__gguf": split(part, 3) for part in (1, 2, 3)}
    folder = files(tmp_path / "x", **parts)
    for named in (folder / "m-00001-of-00003.gguf", folder / "m-00003-of-00003.gguf", folder):
        fetched = await brought(named, staging)
        assert [file.path for file in fetched.files] == [f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
        assert fetched.main == "m-00001-of-00003.gguf"
    assert (await brought(folder / "m-00002-of-00003.gguf", staging, mode="link")).name == "m"


async def test_split_file_without_one_of_its_parts_is_told(tmp_path: Path, staging: Path) -> None:
    """As is one whose name does not say which part it is."""
    folder = files(tmp_path / "x", m_n_00001_n_of_n_00002__gguf=split(1, 2))
    assert "m-00002-of-00002.gguf" in (await refused(folder / "m-00001-of-00002.gguf", staging)).message
    (folder / "m-00001-of-00002.gguf").rename(folder / "m.gguf")
    assert (await refused(folder / "m.gguf", staging)).kind == "invalid"


async def test_known_revision_is_unchanged(tmp_path: Path, staging: Path) -> None:
    """Nothing is copied for an update that brings nothing."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    assert await bring(path, staging, known_revision=SHA256[:12]) == Unchanged(SHA256[:12])
    assert held(staging) == []
    assert isinstance(await bring(path, staging, known_revision="other"), Fetched)


# ---------------------------------------------------------------------------------------------------- a folder


async def test_folder_is_copied_as_far_as_a_backend_needs_it(tmp_path: Path, staging: Path) -> None:
    """Weights, descriptions, tokenizers; no code, no other formats, nothing hidden."""
    folder = files(
        tmp_path / "Some Model",
        config__json=LLAMA,
        model__safetensors=SAFETENSORS,
        tokenizer__model=b"t",
        README__md=b"r",
        pytorch_model__bin=b"\x80\x02",
        modeling__py=b"import os",
        _git___config=b"",
        onnx___model__onnx=b"",
        sub___config__json=b"{}",
    )
    (folder / ".cache").mkdir()
    (folder / ".cache/x.json").write_bytes(b"{}")
    fetched = await brought(folder, staging)
    kept = ["README.md", "config.json", "model.safetensors", "sub/config.json", "tokenizer.model"]
    assert sorted(file.path for file in fetched.files) == kept
    assert (fetched.main, fetched.name, fetched.source) == ("", "some-model", f"file:{folder}")
    again = await bring(folder, staging, known_revision=fetched.revision)
    assert again == Unchanged(fetched.revision)


async def test_folder_with_code_brings_it_only_where_it_is_trusted(tmp_path: Path, staging: Path) -> None:
    """Which the configuration says, for that model."""
    folder = files(tmp_path / "m", config__json=LLAMA, model__safetensors=SAFETENSORS, modeling__py=b"")
    fetched = await brought(folder, staging, trust_remote_code=True)
    assert "modeling.py" in {file.path for file in fetched.files}


async def test_heads_of_bge_m3_come_with_it(tmp_path: Path, staging: Path) -> None:
    """They are tensors alone, and are loaded as such."""
    folder = files(
        tmp_path / "bge-m3", config__json=M3, model__safetensors=SAFETENSORS, sparse_linear__pt=b"x", other__pt=b"x"
    )
    paths = {file.path for file in (await brought(folder, staging)).files}
    assert paths == {"config.json", "model.safetensors", "sparse_linear.pt"}


async def test_folder_with_a_gguf_is_that_model(tmp_path: Path, staging: Path) -> None:
    """With its projector, which becomes an option."""
    projector = gguf({"general.architecture": string("clip"), "general.type": string("mmproj")})
    folder = files(tmp_path / "vision", m__gguf=GGUF, mmproj__gguf=projector, README__md=b"")
    fetched = await brought(folder, staging)
    assert (fetched.main, [file.path for file in fetched.files]) == ("m.gguf", ["m.gguf", "mmproj.gguf"])
    assert bytes(fetched.options["mmproj"]) == b'"mmproj.gguf"'


async def test_folder_is_linked_as_a_whole(tmp_path: Path, staging: Path) -> None:
    """The files are named, and stay where they are."""
    folder = files(tmp_path / "m", config__json=LLAMA, model__safetensors=SAFETENSORS)
    fetched = await brought(folder, staging, mode="link")
    assert (fetched.linked_to, fetched.main, held(staging)) == (str(folder), "", [])


async def test_folder_of_a_hubs_cache_is_read_through_its_links(tmp_path: Path, staging: Path) -> None:
    """They lead out of the revision's folder, and not out of the model's."""
    model = files(
        tmp_path / "models--a--b", blobs___one=SAFETENSORS, blobs___two=LLAMA, snapshots___rev___x__json=b"{}"
    )
    (model / "snapshots/rev/model.safetensors").symlink_to("../../blobs/one")
    (model / "snapshots/rev/config.json").symlink_to("../../blobs/two")
    fetched = await brought(model / "snapshots/rev", staging)
    assert len(fetched.files) == 3
    assert not (staging / "model.safetensors").is_symlink()


# ----------------------------------------------------------------------------------------------- what is refused


async def test_links_that_lead_out_are_refused(tmp_path: Path, staging: Path) -> None:
    """Of files, of folders, also by a detour; one that stays inside is a file like any other."""
    files(tmp_path, secret__json=b"{}", elsewhere___x__json=b"{}")
    for name, target in [
        ("a.json", "../secret.json"),
        ("a", "../elsewhere"),
        ("b.json", str(tmp_path / "secret.json")),
    ]:
        folder = files(tmp_path / f"m-{name}", config__json=LLAMA, model__safetensors=SAFETENSORS)
        (folder / name).symlink_to(target)
        problem = await refused(folder, staging)
        assert (problem.kind, name in problem.message) == ("refused", True)
    inside = files(tmp_path / "inside", config__json=LLAMA, model__safetensors=SAFETENSORS)
    (inside / "generation.json").symlink_to("config.json")
    assert "generation.json" in {file.path for file in (await brought(inside, staging)).files}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "x.ckpt", "x.pkl"])
async def test_pickles_are_refused(tmp_path: Path, staging: Path, name: str) -> None:
    """As a file, and as all the weights that a folder has."""
    folder = files(tmp_path / "m", config__json=LLAMA)
    (folder / name).write_bytes(b"\x80\x02}q\x00.")
    for path in (folder / name, folder):
        problem = await refused(path, staging)
        assert (problem.kind, "GGUF" in (problem.hint or "")) == ("refused", True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.gguf", b""),
        ("m.gguf", GGUF[:200]),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n"),
        ("m.gguf", gguf(tensor_count=2**60)),
        ("m.gguf", gguf({"general.architecture": string("llama"), "general.type": string("adapter")})),
        ("m.safetensors", SAFETENSORS),
        ("m.txt", b"hello"),
    ],
    ids=["empty", "cut", "lfs", "lies", "adapter", "safetensors", "text"],
)
async def test_what_is_no_model_is_refused(tmp_path: Path, staging: Path, name: str, content: bytes) -> None:
    """Whatever it is called."""
    (tmp_path / name).write_bytes(content)
    assert (await refused(tmp_path / name, staging)).kind == "invalid"


@pytest.mark.parametrize("fault", ["empty", "no config", "cut", "pointer", "shard", "two models", "no weights"])
async def test_folder_that_is_no_model_is_refused(tmp_path: Path, staging: Path, fault: str) -> None:
    """With what is wrong with it."""
    contents: dict[str, dict[str, bytes]] = {
        "empty": {},
        "no config": {"model__safetensors": SAFETENSORS},
        "cut": {"config__json": LLAMA, "model__safetensors": SAFETENSORS[:9]},
        "pointer": {"config__json": LLAMA, "model__safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        "shard": {"config__json": LLAMA, "model_n_00001_n_of_n_00002__safetensors": SAFETENSORS},
        "two models": {"a__gguf": GGUF, "b__gguf": GGUF},
        "no weights": {"config__json": LLAMA},
    }
    assert (await refused(files(tmp_path / "m", **contents[fault]), staging)).kind == "invalid"


async def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, staging: Path) -> None:
    """A pipe would hold the import for ever."""
    os.mkfifo(tmp_path / "m.gguf")
    assert (await refused(tmp_path / "m.gguf", staging)).kind == "invalid"
    folder = files(tmp_path / "m", config__json=LLAMA, model__safetensors=SAFETENSORS)
    os.mkfifo(folder / "pipe.json")
    assert "pipe.json" not in {file.path for file in (await brought(folder, staging)).files}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "invalid"),
        ("relative/m.gguf", "invalid"),
        ("/a\0b", "invalid"),
        ("/no/such/file.gguf", "not_found"),
        ("/" + "x" * 300, "not_found"),
        ("/" + "x/" * 5000, "not_found"),
        ("~/m.gguf", "invalid"),
    ],
    ids=["empty", "relative", "null", "absent", "long name", "long path", "home"],
)
async def test_path_that_leads_nowhere_is_told(staging: Path, path: str, kind: str) -> None:
    """Each with its kind."""
    assert (await refused(path, staging)).kind == kind


async def test_links_in_circles_are_told(tmp_path: Path, staging: Path) -> None:
    """They are no file."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert (await refused(tmp_path / "a", staging)).kind == "not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_what_may_not_be_read_is_told(tmp_path: Path, staging: Path) -> None:
    """With the command that changes it."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    path.chmod(0)
    problem = await refused(path, staging)
    assert (problem.kind, "chmod" in (problem.hint or "")) == ("forbidden", True)


async def test_installed_model_is_not_moved_away(tmp_path: Path, staging: Path) -> None:
    """A copy of it can be made."""
    installed = files(staging.parents[1] / "m/abc", m__gguf=GGUF) / "m.gguf"
    for mode in ("move", "link"):
        assert (await refused(installed, staging, mode=mode)).kind == "refused"
    assert isinstance(await bring(installed, staging), Fetched)


async def test_file_that_is_being_written_is_refused(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. It grows while it is copied. Result: nothing of it is kept."""
    path = files(tmp_path, m__gguf=GGUF + bytes(100_000)) / "m.gguf"
    real = os.read

    def read(fd: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"x")
        return real(fd, size)

    monkeypatch.setattr(copying.os, "read", read)
    problem = await refused(path, staging)
    assert (problem.kind, "changed" in problem.message) == ("invalid", True)


async def test_space_is_checked_before_a_copy(tmp_path: Path, staging: Path) -> None:
    """A file with a hole of a petabyte is long, and no copy of it fits."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    try:
        os.truncate(path, 2**42)
    except OSError:
        pytest.skip("this file system has no files of that length")
    assert (await refused(path, staging)).kind == "no_space"


async def test_disk_that_is_full_keeps_nothing_half(
    tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The disk is full in the middle of a copy. Result: `no_space`, and the original is as it was."""
    path = files(tmp_path, m__gguf=GGUF + bytes(3_000_000)) / "m.gguf"
    written = 0

    def write(_: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(copying.os, "write", write)
    problem = await refused(path, staging)
    monkeypatch.undo()
    assert (problem.kind, path.stat().st_size) == ("no_space", len(GGUF) + 3_000_000)
    await brought(path, staging)


async def test_import_that_is_not_wanted_any_more_ends(tmp_path: Path, staging: Path) -> None:
    """1. Cancelled while it copies. Result: it stops, and what was half is gone."""
    path = files(tmp_path, m__gguf=GGUF) / "m.gguf"
    os.truncate(path, 3 * 2**30)
    report: list[FetchProgress] = []
    async with open_session() as session:
        request = FetchRequest(f"file:{path}", str(staging))
        task = asyncio.ensure_future(local.fetch(request, session=session, report=report.append))
        await eventually(lambda: any(each.bytes_done for each in report))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await eventually(lambda: not held(staging))
    assert report[-1].bytes_done < 3 * 2**30
