"""A deletion takes every revision of a model, its row and its runtime, and nothing that is not llmvisor's own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.library import Shelved, opened, visible

from llmvisor.errors import Conflict


@pytest.fixture
async def shelved(tmp_path: Path) -> Shelved:
    return await opened(tmp_path / "models")


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
