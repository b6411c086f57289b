"""Every step of every change among the installed models fails once, by a kill or a full disk; nothing is ever half."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.library import Shelved

from llmvisor.errors import LlmvisorError
from llmvisor.fetch.protocol import Fetched
from llmvisor.models import shelf
from llmvisor.models.manifest import MANIFEST_NAME, decode

STEPS_MAX = 100
STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "open"),
    (Path, "chmod"),
    (shutil, "rmtree"),
    (tempfile, "mkdtemp"),
)


class Killed(BaseException):
    """The process is gone at this very step."""


class Countdown:
    """Fails at the step with this number, and at every one after it; a kill comes only once, of course."""

    def __init__(self, number: int, failure: Callable[[], BaseException]) -> None:
        self.left = number
        self.failure = failure
        self.failed = False

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise self.failure()


@contextmanager
def failing(patch: pytest.MonkeyPatch, countdown: Countdown) -> Generator[None]:
    with patch.context() as patched:
        for owner, name in STEPS:
            real = getattr(owner, name)

            def counted(*args: Any, real: Any = real, ignore_errors: bool = False, **options: Any) -> Any:
                try:
                    countdown.step()
                except OSError:
                    if ignore_errors:
                        return None
                    raise
                return real(*args, **(options | ({"ignore_errors": True} if ignore_errors else {})))

            patched.setattr(owner, name, counted)
        yield


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def check_whole(shelved: Shelved) -> None:
    """What is seen under a name has all its files, and everybody says the same of it."""
    seen: set[str] = set()
    for folder in shelved.folder.glob("[!.]*/*"):
        manifest = decode((folder / MANIFEST_NAME).read_bytes())
        assert {path.name for path in folder.glob("[!.]*")} == {"tiny.gguf", MANIFEST_NAME}
        assert [(folder / file.path).stat().st_size for file in manifest.fetched.files] == [
            file.size for file in manifest.fetched.files
        ]
        seen.add(f"{manifest.name}/{folder.name}")
    models = shelved.library.all()
    assert {model.name for model in models} == {place.partition("/")[0] for place in seen}
    for model in models:
        assert f"{model.name}/{model.revision}" in seen
        assert model.previous_revision is None or f"{model.name}/{model.previous_revision}" in seen
        assert shelved.runtimes.configs[model.name].path == model.path
        assert not shelved.library.is_gone(model.name)
        assert shelved.rows.rows[model.name].model == model
    assert set(shelved.rows.rows) == {model.name for model in models}


Brought = dict[int, tuple[Fetched, Path]]
Change = Callable[[Shelved, Brought], Awaitable[object]]


def bring_all(shelved: Shelved) -> Brought:
    """What fetches have brought, by the seed of the model."""
    return {seed: shelved.fetched(f"job_{seed}", seed=seed) for seed in (2, 3)}


async def install(shelved: Shelved, brought: Brought) -> None:
    await shelved.library.publish(*brought[3], name="other")


async def update(shelved: Shelved, brought: Brought) -> None:
    await shelved.library.publish(*brought[3], name="tiny", replace=True)


async def reinstall(shelved: Shelved, brought: Brought) -> None:
    """The revision that is there already."""
    await shelved.library.publish(*brought[2], name="tiny", replace=True)


async def rollback(shelved: Shelved, _: Brought) -> None:
    await shelved.library.rollback("tiny")


async def delete(shelved: Shelved, _: Brought) -> None:
    await shelved.library.delete("tiny")


async def load(shelved: Shelved, _: Brought) -> None:
    await shelved.load()


CHANGES = (install, update, reinstall, rollback, delete, load)


async def prepared(folder: Path) -> Shelved:
    """A model with a revision before its own."""
    shelved = Shelved(folder)
    await shelved.library.open()
    await shelved.install(seed=1)
    await shelved.install(seed=2, replace=True)
    shelved.clock.at += 1
    return shelved


async def ended(work: Awaitable[object]) -> BaseException | None:
    try:
        await work
    except (LlmvisorError, Killed) as error:
        return error
    return None


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_kill_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """The next daemon shows whole models alone, cleans up, and can do what was not done."""
    for number in range(STEPS_MAX):
        shelved = await prepared(tmp_path / str(number))
        brought = bring_all(shelved)
        countdown = Countdown(number, Killed)
        with failing(monkeypatch, countdown):
            await ended(change(shelved, brought))
        after = shelved.again()
        await after.library.open()
        await after.library.clear_staging(set())
        check_whole(after)
        assert [list((after.folder / name).glob("*")) for name in (shelf.STAGING, shelf.TRASH)] == [[], []]
        if not countdown.failed:
            break
        await ended(change(after, bring_all(after)))
        check_whole(after)
    else:
        raise AssertionError("there is no end of steps")
    assert number > 0


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_full_disk_at_any_step_is_told_and_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """The same daemon goes on with whole models, and does it once there is room again."""
    for number in range(STEPS_MAX):
        shelved = await prepared(tmp_path / str(number))
        brought = bring_all(shelved)
        countdown = Countdown(number, disk_full)
        with failing(monkeypatch, countdown):
            error = await ended(change(shelved, brought))
        assert error is None or countdown.failed
        check_whole(shelved)
        await ended(change(shelved, bring_all(shelved)))
        check_whole(shelved)
        if not countdown.failed:
            break
    else:
        raise AssertionError("there is no end of steps")
    assert number > 0
