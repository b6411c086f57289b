"""Changes of configuration files are noticed once, when whoever writes has finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import watchfiles.main
from tests.support.polling import eventually
from watchfiles._rust_notify import WatchfilesRustInternalError

from llmvisor import limits
from llmvisor.clock import SystemClock
from llmvisor.config.source import ConfigSource
from llmvisor.config.watcher import ConfigWatcher


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("models: {mock: {backend: mock}}\n")
    return path


@asynccontextmanager
async def watched(file: Path) -> AsyncGenerator[list[str]]:
    """What the file held each time that it was told to have changed."""
    told: list[str] = []

    def changed() -> None:
        told.append(file.read_text() if file.exists() else "gone")

    source = ConfigSource(flags={"config": str(file)}, environ={"HOME": "/nowhere"}, cwd=file.parent)
    task = asyncio.create_task(ConfigWatcher(source, changed, clock=SystemClock()).run())
    try:
        await asyncio.sleep(0.1)
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def replace(file: Path, text: str) -> None:
    partial = file.with_name("partial")
    partial.write_text(text)
    partial.replace(file)


def kernel_says_nothing(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """There are no watches left, or watching fails later."""

    def fail(*_: object, **__: object) -> None:
        raise WatchfilesRustInternalError("no watches are left")

    broken = MagicMock()
    broken.return_value.__enter__.return_value.watch = fail
    monkeypatch.setattr(watchfiles.main, "RustNotify", fail if how == "no watches are left" else broken)
    monkeypatch.setattr(limits, "config_look_seconds", 0.2)


@pytest.mark.parametrize("how", ["told", "no watches are left", "watching fails"])
async def test_each_change_is_told_once(file: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """By rename twice, in place, deleted and made again; with the kernel's word and without it, as on network disks."""
    if how != "told":
        kernel_says_nothing(monkeypatch, how)
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: replace(file, "one"), "one"),
        (lambda: replace(file, "two"), "two"),
        (lambda: file.write_text("three"), "three"),
        (file.unlink, "gone"),
        (lambda: file.write_text("four"), "four"),
    ]
    async with watched(file) as told:
        for count, (step, text) in enumerate(steps, 1):
            step()
            await eventually(lambda count=count: len(told) >= count, 10)
            assert told[-1] == text
        await asyncio.sleep(limits.config_settle_seconds * 2)
        assert len(told) == len(steps)


async def test_file_that_somebody_writes_to_is_waited_for(file: Path) -> None:
    """Longer than the moment of rest: as long as it is open and has been written to."""
    async with watched(file) as told:
        with file.open("w") as opened:
            opened.write("half")
            opened.flush()
            await asyncio.sleep(limits.config_settle_seconds * 3)
            assert told == []
            opened.write(" and half")
        await eventually(lambda: told == ["half and half"], 5)


async def test_file_that_is_written_to_for_ever_is_read_all_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a bound."""
    monkeypatch.setattr(limits, "config_settle_seconds_max", 0.5)
    async with watched(file) as told:
        with file.open("w") as opened:
            opened.write("half")
            opened.flush()
            await eventually(lambda: told == ["half"], 5)


async def test_other_files_of_the_folder_are_nobodys_business(file: Path) -> None:
    """Logs may lie there."""
    async with watched(file) as told:
        for number in range(100):
            (file.parent / "main.log").write_text(str(number))
        await asyncio.sleep(limits.config_settle_seconds * 2)
        assert told == []


async def test_volume_whose_link_is_turned_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes renews a ConfigMap: the file itself is a link through `..data`, and stays what it is."""
    monkeypatch.setattr(limits, "config_look_seconds", 60.0)
    for version in ("..v1", "..v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("..v1")
    file = tmp_path / "config.yaml"
    file.symlink_to("..data/config.yaml")
    async with watched(file) as told:
        (tmp_path / "..data_tmp").symlink_to("..v2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await eventually(lambda: told == ["..v2"], 5)


async def test_folder_that_is_another_one_now_is_watched(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed away, and made anew: as deployments do it."""
    monkeypatch.setattr(limits, "config_look_seconds", 0.5)
    async with watched(file) as told:
        await asyncio.sleep(1)
        monkeypatch.setattr(limits, "config_look_seconds", 60.0)
        file.parent.rename(file.parent.with_name("before"))
        file.parent.mkdir()
        await eventually(lambda: told == ["gone"], 10)
        await asyncio.sleep(0.5)
        replace(file, "new")
        await eventually(lambda: told == ["gone", "new"], 10)


async def test_change_before_the_watch_began_counts(file: Path) -> None:
    """Between the start's reading and the watch."""
    source = ConfigSource(flags={"config": str(file)}, environ={"HOME": "/nowhere"}, cwd=file.parent)
    replace(file, "later")
    told: list[str] = []
    watcher = ConfigWatcher(source, lambda: told.append("changed"), clock=SystemClock())
    task = asyncio.create_task(watcher.run())
    await eventually(lambda: told == ["changed"], 5)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_places_of_a_start_without_a_named_file(tmp_path: Path) -> None:
    """All that might come into being, and `.env` beside each and in the working directory."""
    environ = {"HOME": str(tmp_path / "home")}
    places = ConfigSource(flags={}, environ=environ, cwd=tmp_path).places()
    assert places[0] == tmp_path / "config.yaml"
    assert tmp_path / "home" / ".config" / "llmvisor" / "config.yaml" in places
    assert tmp_path / ".env" in places
    named = ConfigSource(flags={"config": "x/y.yaml"}, environ=environ, cwd=tmp_path).places()
    assert named == [tmp_path / "x" / "y.yaml", tmp_path / "x" / ".env", tmp_path / ".env"]
