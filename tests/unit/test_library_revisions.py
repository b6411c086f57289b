"""Updates and rollbacks: the revision that worked last stays until a newer one has proved itself.

Which revision is served and which one lies before it follows from what was installed and loaded, whatever the clock
says; what a person chose is kept, and nothing but the revisions that nobody goes back to is removed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.library import Shelved, opened, visible

from llmvisor.errors import Conflict, NotFound


@pytest.fixture
async def shelved(tmp_path: Path) -> Shelved:
    return await opened(tmp_path / "models")


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
