"""What is published in the library of installed models is whole and known, or is not there at all.

Names that are no folders, fetches that say nonsense and files that are not whole put nothing anywhere; a name belongs
to one model, whoever else wants it at the same time; a full disk leaves what was there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from tests.support.library import Shelved, opened, visible

from llmvisor.errors import Conflict, InvalidRequest, LlmvisorError
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FetchedFile


@pytest.fixture
async def shelved(tmp_path: Path) -> Shelved:
    return await opened(tmp_path / "models")


async def test_published_model_is_known_with_what_its_file_says(shelved: Shelved) -> None:
    """Its row, its manifest and the supervisor have it, and nothing is left in staging."""
    revision = await shelved.install()
    model = shelved.library.installed("tiny")
    assert model is not None
    assert (model.architecture, model.type, model.backend, model.context_length) == ("llama", "llm", "llamacpp", 1024)
    assert model.path == f"{shelved.folder}/tiny/{revision}/tiny.gguf"
    assert visible(shelved) == [f"tiny/{revision}"]
    assert shelved.runtimes.configs["tiny"].path == model.path
    assert shelved.rows.rows["tiny"].model == model
    assert list((shelved.folder / ".staging").iterdir()) == []


async def test_settings_of_the_source_become_the_models_own(shelved: Shelved) -> None:
    """Sampling within bounds and options, in which a file's name becomes its path; others are left out."""
    fetched, staging = shelved.fetched()
    (staging / "lora").mkdir()
    (staging / "lora" / "one.gguf").write_bytes(b"1234")
    files = [*fetched.files, FetchedFile("lora/one.gguf", 4, "0" * 64)]
    adapters = msgspec.Raw(msgspec.json.encode({"one": {"path": "lora/one.gguf"}}))
    fetched = msgspec.structs.replace(
        fetched,
        files=files,
        options={"adapters": adapters},
        sampling={"temperature": 0.2, "top_k": "20", "top_p": 7, "n_ctx": 512, "mirostat": 1},
    )
    model = await shelved.library.publish(fetched, staging, name="tiny", tier="heavy")
    config = shelved.runtimes.configs["tiny"]
    assert (config.temperature, config.top_k, config.top_p, config.n_ctx, config.tier) == (0.2, 20, 0.95, 512, "heavy")
    assert config.options == {"adapters": {"one": {"path": f"{model.folder}/lora/one.gguf"}}}


async def test_what_fetching_left_beside_the_files_is_not_installed(shelved: Shelved) -> None:
    """Partials, sidecars and empty folders go; links are never followed."""
    fetched, staging = shelved.fetched()
    outside = shelved.folder.parent / "outside"
    outside.write_text("mine")
    (staging / "other.gguf.partial").write_bytes(b"x")
    (staging / "empty").mkdir()
    (staging / "out").symlink_to(outside)
    (staging / "dirs").symlink_to(shelved.folder.parent)
    model = await shelved.library.publish(fetched, staging, name="tiny")
    assert sorted(path.name for path in shelved.folder.glob("tiny/*/*")) == ["manifest.json", "tiny.gguf"]
    assert model.size == fetched.files[0].size
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "/etc", "a\0b", "ä", "a b", ".hidden", "-x", "a" * 101, "a" * 10_000, "light", "HEAVY",
     "default", "a\nb", "\u202egpj", "ａ", "a\\b", "con:1"],
    ids=lambda name: ascii(name[:12]),
)  # fmt: skip
async def test_name_that_is_no_folders_is_refused(shelved: Shelved, name: str) -> None:
    """Whatever it is, nothing is written outside, nor anything at all."""
    fetched, staging = shelved.fetched()
    with pytest.raises(InvalidRequest):
        await shelved.library.publish(fetched, staging, name=name)
    assert visible(shelved) == []
    assert sorted(path.name for path in shelved.folder.parent.iterdir()) == ["models"]


async def test_name_that_is_a_link_is_not_written_through(shelved: Shelved) -> None:
    """Whoever put it there, nothing lands where it leads."""
    outside = shelved.folder.parent / "outside"
    outside.mkdir()
    (shelved.folder / "tiny").symlink_to(outside)
    with pytest.raises(FetchProblem, match="is a link"):
        await shelved.install()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": "../../x"},
        {"revision": ""},
        {"revision": "a" * 200},
        {"files": []},
        {"main": "absent.gguf"},
        {"files": [FetchedFile("../tiny.gguf", 1, "0")], "main": ""},
        {"files": [FetchedFile("/etc/passwd", 1, "0")], "main": ""},
        {"files": [FetchedFile("a//b", 1, "0")], "main": ""},
        {"files": [FetchedFile("a\0", 1, "0")], "main": ""},
        {"files": [FetchedFile("manifest.json", 1, "0")], "main": ""},
        {"files": [FetchedFile("A.gguf", 1, "0"), FetchedFile("a.gguf", 1, "0")], "main": ""},
    ],
    ids=repr,
)
async def test_fetch_that_says_nonsense_installs_nothing(shelved: Shelved, changes: dict[str, object]) -> None:
    """A revision that is a path, files outside the folder or twice, a main file that is not there."""
    fetched, staging = shelved.fetched()
    with pytest.raises(LlmvisorError):
        await shelved.library.publish(msgspec.structs.replace(fetched, **changes), staging, name="tiny")
    assert visible(shelved) == []


@pytest.mark.parametrize("damage", ["absent", "short", "long", "link", "folder"])
async def test_half_a_file_is_never_seen(shelved: Shelved, damage: str) -> None:
    """What is not as long as the manifest says, or no file, stays in staging."""
    fetched, staging = shelved.fetched()
    path = staging / "tiny.gguf"
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "short":
            path.write_bytes(data[:-1])
        case "long":
            path.write_bytes(data + b"x")
        case "link":
            outside = shelved.folder.parent / "outside.gguf"
            outside.write_bytes(data)
            path.symlink_to(outside)
        case "folder":
            path.mkdir()
        case _:
            pass
    with pytest.raises(LlmvisorError):
        await shelved.library.publish(fetched, staging, name="tiny")
    assert visible(shelved) == []
    assert shelved.library.all() == []


async def test_file_that_no_backend_serves_gets_no_name(shelved: Shelved) -> None:
    """Its header is read before anybody can see it."""
    fetched, staging = shelved.fetched()
    (staging / "tiny.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    files = [FetchedFile("tiny.gguf", 64, "0" * 64)]
    with pytest.raises(FetchProblem, match=r"^tiny\.gguf: "):
        await shelved.library.publish(msgspec.structs.replace(fetched, files=files), staging, name="tiny")
    assert visible(shelved) == []


async def test_name_that_is_taken_is_a_conflict_whatever_its_capitals(shelved: Shelved) -> None:
    """The message says by what, and what to do."""
    await shelved.install("tiny")
    fetched, staging = shelved.fetched("job_2", seed=2)
    with pytest.raises(Conflict, match="'tiny' is taken by file:/somewhere"):
        await shelved.library.publish(fetched, staging, name="TINY")
    assert len(shelved.library.all()) == 1


async def test_of_two_at_once_one_gets_the_name(shelved: Shelved) -> None:
    """The other one is told so, and whichever it is, its files are whole."""
    brought = [shelved.fetched(f"job_{seed}", seed=seed) for seed in (1, 2)]
    names = ("tiny", "Tiny")
    publishing = [shelved.library.publish(*each, name=name) for each, name in zip(brought, names, strict=True)]
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert [type(result) for result in results].count(Conflict) == 1
    assert len(visible(shelved)) == len(shelved.library.all()) == 1


async def test_changes_of_one_model_happen_one_after_another(shelved: Shelved) -> None:
    """Whatever is asked at once, what is left is whole and known, or gone."""
    await shelved.install()
    fetched, staging = shelved.fetched("job_2", seed=2)
    await asyncio.gather(
        shelved.library.publish(fetched, staging, name="tiny", replace=True),
        shelved.load(),
        shelved.library.rollback("tiny"),
        shelved.library.delete("tiny"),
        return_exceptions=True,
    )
    assert visible(shelved) == []
    assert shelved.library.all() == []
    assert shelved.rows.rows == {}


async def test_full_disk_leaves_what_was_there(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename that fails is told as such, and the model of before is served."""
    first = await shelved.install()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchProblem) as caught:
        await shelved.install(seed=2, replace=True)
    assert caught.value.kind == "no_space"
    model = shelved.library.installed("tiny")
    assert model is not None
    assert model.revision == first
