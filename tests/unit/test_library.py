"""The library of installed models: what it shows, and what it finds again after a kill at any point."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from tests.support.library import Shelved

from llmvisor.errors import Conflict, InvalidRequest, LlmvisorError, NotFound
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FetchedFile
from llmvisor.models.manifest import Manifest, decode, encode
from llmvisor.models.shelf import Shelf


@pytest.fixture
async def shelved(tmp_path: Path) -> Shelved:
    shelved = Shelved(tmp_path / "models")
    await shelved.library.open()
    return shelved


def visible(shelved: Shelved) -> list[str]:
    """What lies under the models' names."""
    return sorted(path.relative_to(shelved.folder).as_posix() for path in shelved.folder.glob("[!.]*/*"))


# ------------------------------------------------------------------------------------------------ publish


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


# ------------------------------------------------------------------------------------------------ update and rollback


async def test_update_keeps_the_old_revision_until_the_new_one_has_loaded_once(shelved: Shelved) -> None:
    """Both lie there, the new one is served; a load of it removes the old one."""
    first = await shelved.install()
    await shelved.load()
    second = await shelved.install(seed=2, replace=True)
    assert visible(shelved) == sorted([f"tiny/{first}", f"tiny/{second}"])
    assert shelved.runtimes.calls[-1] == ("replace", "tiny")
    assert shelved.runtimes.configs["tiny"].path == f"{shelved.folder}/tiny/{second}/tiny.gguf"
    await shelved.load()
    assert visible(shelved) == [f"tiny/{second}"]
    model = shelved.library.installed("tiny")
    assert model is not None
    assert (model.has_loaded, model.previous_revision, model.capabilities) == (True, None, ["completions"])
    assert shelved.rows.rows["tiny"].model == model


async def test_old_revision_that_the_configuration_names_stays(shelved: Shelved) -> None:
    """Or else a configured model would lose its file by the update of an installed one."""
    first = await shelved.install()
    await shelved.install(seed=2, replace=True)
    shelved.runtimes.user = "mine"
    await shelved.load()
    assert f"tiny/{first}" in visible(shelved)
    after = shelved.again()
    after.runtimes.user = "mine"
    await after.library.open()
    assert f"tiny/{first}" in visible(after)


async def test_load_of_the_old_revision_removes_nothing(shelved: Shelved) -> None:
    """A worker that had begun before the update proves nothing of the new revision."""
    await shelved.install()
    old_path = shelved.runtimes.configs["tiny"].path
    await shelved.install(seed=2, replace=True)
    shelved.library.on_loaded("tiny", old_path, [])
    await shelved.library.settled()
    assert len(visible(shelved)) == 2


async def test_update_of_what_never_loaded_keeps_the_last_one_that_did(shelved: Shelved) -> None:
    """Two updates in a row: the one in between is worth nothing."""
    first = await shelved.install()
    await shelved.load()
    await shelved.install(seed=2, replace=True)
    third = await shelved.install(seed=3, replace=True)
    assert visible(shelved) == sorted([f"tiny/{first}", f"tiny/{third}"])


async def test_rollback_goes_back_and_forth(shelved: Shelved) -> None:
    """The revision before is served again; rolled back once more the newer one is."""
    first = await shelved.install()
    second = await shelved.install(seed=2, replace=True)
    shelved.clock.at += 1
    assert (await shelved.library.rollback("tiny")).revision == first
    shelved.clock.at += 1
    assert (await shelved.library.rollback("tiny")).revision == second
    await shelved.load()
    with pytest.raises(Conflict, match="no revision to go back to"):
        await shelved.library.rollback("tiny")


async def test_same_revision_again_is_no_previous_one(shelved: Shelved) -> None:
    """An update that brings what is there puts the files there anew, and there is nothing to go back to."""
    revision = await shelved.install()
    await shelved.install(replace=True)
    model = shelved.library.installed("tiny")
    assert model is not None
    assert (model.revision, model.previous_revision) == (revision, None)
    assert visible(shelved) == [f"tiny/{revision}"]


async def test_update_of_a_link_leaves_nothing_to_go_back_to(shelved: Shelved) -> None:
    """What the link leads to is another file now."""
    for seed in (1, 2):
        fetched, staging = shelved.fetched(f"job_{seed}", seed=seed)
        away = (staging / "tiny.gguf").rename(shelved.folder.parent / "tiny.gguf")
        linked = msgspec.structs.replace(fetched, linked_to=str(away))
        await shelved.library.publish(linked, staging, name="tiny", replace=seed == 2)
    assert visible(shelved) == [f"tiny/{fetched.revision}"]
    with pytest.raises(Conflict):
        await shelved.library.rollback("tiny")


async def test_update_of_what_is_not_installed_is_refused(shelved: Shelved) -> None:
    """Nothing is put anywhere."""
    with pytest.raises(NotFound):
        await shelved.install(replace=True)
    assert visible(shelved) == []


async def test_update_keeps_the_tier_that_a_person_chose(shelved: Shelved) -> None:
    """What the source says counts only where nobody chose."""
    fetched, staging = shelved.fetched()
    await shelved.library.publish(fetched, staging, name="tiny", tier="heavy")
    newer, staging = shelved.fetched("job_2", seed=2)
    newer = msgspec.structs.replace(newer, tier="light")
    model = await shelved.library.publish(newer, staging, name="tiny", tier="light", replace=True)
    assert model.tier == "heavy"


async def test_clock_that_was_set_back_confuses_no_revisions(shelved: Shelved) -> None:
    """Which revision was chosen last is seen without the store, whatever the clock said."""
    first = await shelved.install()
    shelved.clock.at -= 10_000
    second = await shelved.install(seed=2, replace=True)
    shelved.rows.rows.clear()
    after = shelved.again()
    await after.library.open()
    model = after.library.installed("tiny")
    assert model is not None
    assert (model.revision, model.previous_revision) == (second, first)


async def test_install_heals_a_damaged_file_of_the_same_revision(shelved: Shelved) -> None:
    """The file is put over the one that is there, which may be open."""
    revision = await shelved.install()
    path = shelved.folder / "tiny" / revision / "tiny.gguf"
    sound = path.read_bytes()
    path.write_bytes(sound[:-10] + bytes(10))
    await shelved.install(replace=True)
    assert path.read_bytes() == sound
    assert visible(shelved) == [f"tiny/{revision}"]


async def test_name_that_is_a_link_is_not_written_through(shelved: Shelved) -> None:
    """Whoever put it there, nothing lands where it leads."""
    outside = shelved.folder.parent / "outside"
    outside.mkdir()
    (shelved.folder / "tiny").symlink_to(outside)
    with pytest.raises(FetchProblem, match="is a link"):
        await shelved.install()
    assert list(outside.iterdir()) == []


# ------------------------------------------------------------------------------------------------ delete


async def test_delete_gives_the_bytes_of_all_revisions(shelved: Shelved) -> None:
    """Files, row and runtime are gone, and the name is free again."""
    await shelved.install()
    await shelved.install(seed=2, replace=True)
    bytes_before = sum(path.stat().st_size for path in shelved.folder.glob("tiny/*/*"))
    assert await shelved.library.delete("tiny") == bytes_before
    assert visible(shelved) == []
    assert shelved.rows.rows == {}
    assert shelved.runtimes.calls[-1] == ("remove", "tiny")
    await shelved.install()


async def test_delete_of_what_is_in_use_needs_force(shelved: Shelved) -> None:
    """The refusal says who uses it, and leaves everything as it is."""
    revision = await shelved.install()
    shelved.runtimes.user = "it is loaded"
    with pytest.raises(Conflict, match="in use: it is loaded"):
        await shelved.library.delete("tiny")
    assert visible(shelved) == [f"tiny/{revision}"]
    await shelved.library.delete("tiny", force=True)
    assert visible(shelved) == []


async def test_delete_leaves_linked_files_alone(shelved: Shelved) -> None:
    """Only what llmvisor put there is its own to delete."""
    fetched, staging = shelved.fetched()
    away = shelved.folder.parent / "tiny.gguf"
    (staging / "tiny.gguf").rename(away)
    fetched = msgspec.structs.replace(fetched, linked_to=str(away))
    model = await shelved.library.publish(fetched, staging, name="tiny")
    assert (model.path, model.linked) == (str(away), True)
    await shelved.library.delete("tiny")
    assert away.exists()


# ------------------------------------------------------------------------------------------------ the next daemon


async def test_next_daemon_finds_the_models_by_their_rows(shelved: Shelved) -> None:
    """As they were, with what the workers had told."""
    await shelved.install()
    await shelved.load()
    after = shelved.again()
    await after.library.open()
    assert after.library.all() == shelved.library.all()
    assert after.runtimes.configs == shelved.runtimes.configs


@pytest.mark.parametrize("state", ["lost", "broken"])
async def test_lost_store_is_made_again_from_the_manifests(shelved: Shelved, state: str) -> None:
    """Which revision is served, and which is before it, is seen in the folders."""
    first = await shelved.install()
    second = await shelved.install(seed=2, replace=True)
    shelved.rows.rows.clear()
    after = shelved.again()
    after.rows.broken = state == "broken"
    await after.library.open()
    model = after.library.installed("tiny")
    assert model is not None
    assert (model.revision, model.previous_revision) == (second, first)
    assert after.runtimes.configs["tiny"].path == model.path
    assert (set(after.rows.rows) == {"tiny"}) is (state == "lost")


async def test_rollback_is_remembered_without_the_store(shelved: Shelved) -> None:
    """The older revision was chosen last."""
    first = await shelved.install()
    await shelved.install(seed=2, replace=True)
    shelved.clock.at += 1
    await shelved.library.rollback("tiny")
    shelved.rows.rows.clear()
    after = shelved.again()
    await after.library.open()
    model = after.library.installed("tiny")
    assert model is not None
    assert model.revision == first


@pytest.mark.parametrize("replace", [False, True])
async def test_kill_between_rename_and_row_loses_nothing(shelved: Shelved, *, replace: bool) -> None:
    """The folder is whole, so the next daemon takes it in."""
    first = await shelved.install() if replace else None
    shelved.rows.broken = True
    second = await shelved.install(seed=2, replace=replace)
    shelved.rows.broken = False
    after = shelved.again()
    await after.library.open()
    model = after.library.installed("tiny")
    assert model is not None
    assert (model.revision, model.previous_revision) == (second, first)
    assert after.rows.rows["tiny"].model == model


async def test_kill_before_the_rename_shows_nothing(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is written already; the job that owns the staging may go on, any other staging is removed."""
    fetched, staging = shelved.fetched()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            await shelved.library.publish(fetched, staging, name="tiny")
    after = shelved.again()
    await after.library.open()
    assert after.library.all() == []
    await after.library.clear_staging({"job_1"})
    assert (staging / "tiny.gguf").exists()
    await after.library.publish(fetched, after.library.staging("job_1"), name="tiny")
    after.library.staging("job_2")
    await after.library.clear_staging(set())
    assert list((after.folder / ".staging").iterdir()) == []


async def test_kill_in_the_middle_of_a_deletion_ends_it(shelved: Shelved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of sight, the row still there: the next daemon takes both away."""
    await shelved.install()

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    shelved.rows.broken = True
    with monkeypatch.context() as patched:
        patched.setattr(Shelf, "destroy", killed)
        with pytest.raises(KeyboardInterrupt):
            await shelved.library.delete("tiny")
    shelved.rows.broken = False
    after = shelved.again()
    await after.library.open()
    await after.library.clear_staging(set())
    assert after.library.all() == []
    assert after.rows.rows == {}
    assert list((after.folder / ".trash").iterdir()) == []


async def test_revisions_that_nobody_goes_back_to_are_removed_at_a_start(shelved: Shelved) -> None:
    """As a kill in the middle of an update leaves them: the newest and the one before stay."""
    kept = [await shelved.install(), await shelved.install(seed=2, replace=True)]
    fetched, staging = shelved.fetched("job_3", seed=3)
    long_ago = "2020-01-01T00:00:00+00:00"
    Shelf(shelved.folder).place(Manifest(fetched, "tiny", None, long_ago, long_ago), staging)
    assert len(visible(shelved)) == 3
    after = shelved.again()
    await after.library.open()
    assert visible(after) == sorted(f"tiny/{revision}" for revision in kept)


async def test_model_whose_files_are_gone_is_marked_and_can_be_installed_again(shelved: Shelved) -> None:
    """Its row stays, so that a person sees what is missing; its name is free for the same again."""
    revision = await shelved.install()
    (shelved.folder / "tiny" / revision / "tiny.gguf").unlink()
    (shelved.folder / "tiny" / revision / "manifest.json").unlink()
    after = shelved.again()
    await after.library.open()
    assert after.library.is_gone("tiny")
    await after.install()
    assert not after.library.is_gone("tiny")
    assert visible(after) == [f"tiny/{revision}"]


async def test_folder_that_nobody_can_use_spoils_nothing(shelved: Shelved) -> None:
    """Manifests of nonsense, another model's, a link: none is taken in, and none is deleted."""
    revision = await shelved.install()
    manifest = (shelved.folder / "tiny" / revision / "manifest.json").read_bytes()
    for name, data in (("broken", b"{"), ("copied", manifest), ("empty", b"")):
        folder = shelved.folder / name / revision
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(data)
    (shelved.folder / "linked").symlink_to(shelved.folder / "tiny")
    (shelved.folder / "plain.gguf").write_bytes(b"GGUF")
    after = shelved.again()
    await after.library.open()
    assert [model.name for model in after.library.all()] == ["tiny"]
    assert (shelved.folder / "broken" / revision / "manifest.json").exists()


async def test_row_that_cannot_be_used_spoils_no_other(shelved: Shelved) -> None:
    """Somebody has written nonsense into the store."""
    await shelved.install("first")
    await shelved.install("second", seed=2)
    row = shelved.rows.rows["first"]
    model = msgspec.structs.replace(row.model, tier="tierless")
    shelved.rows.rows["first"] = msgspec.structs.replace(row, model=model)
    after = shelved.again()
    await after.library.open()
    assert [model.name for model in after.library.all()] == ["second"]


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-01T00:00:00", "9999-12-31T23:59:59+00:00"])
async def test_manifest_whose_time_is_none_is_not_taken_in(shelved: Shelved, time: str) -> None:
    """Nothing could ever be chosen after it."""
    revision = await shelved.install()
    path = shelved.folder / "tiny" / revision / "manifest.json"
    manifest = decode(path.read_bytes())
    path.write_bytes(encode(msgspec.structs.replace(manifest, chosen_at=time)))
    shelved.rows.rows.clear()
    after = shelved.again()
    await after.library.open()
    assert after.library.all() == []


async def test_models_folder_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    """The daemon goes on without installed models, and says why when one is to be installed."""
    (tmp_path / "models").write_text("a file")
    shelved = Shelved(tmp_path / "models")
    await shelved.library.open()
    assert shelved.library.is_open
    with pytest.raises(FetchProblem):
        shelved.library.staging("job_1")


async def test_folder_that_another_daemon_has_is_not_cleaned_up(shelved: Shelved) -> None:
    """Its downloads are under way; what it has installed is served all the same."""
    await shelved.install()
    staging = shelved.library.staging("job_9")
    second = Shelved(shelved.folder, shelved.rows)
    await second.library.open()
    await second.library.clear_staging(set())
    assert staging.exists()
    assert [model.name for model in second.library.all()] == ["tiny"]
    after = shelved.again()
    await after.library.open()
    await after.library.clear_staging(set())
    assert not staging.exists()
