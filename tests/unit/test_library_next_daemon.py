"""What the next daemon finds of the installed models, after an ordinary end and after a kill at any point.

Rows and manifests stand in for each other; what was cut off in the middle is ended or shows nothing; folders, rows and
manifests that nobody can use spoil nothing beside them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.library import Shelved, opened, visible

from llmvisor.fetch.failures import FetchProblem
from llmvisor.models.manifest import Manifest, decode, encode
from llmvisor.models.shelf import Shelf


@pytest.fixture
async def shelved(tmp_path: Path) -> Shelved:
    return await opened(tmp_path / "models")


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
