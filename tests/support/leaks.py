"""Whether a test gave everything back: descriptors, children, threads, tasks, and the files of its run folder.

Use the fixture `leak_check` in an async test, or `no_leaks` around a part of any other. What was there before may go;
nothing may have come.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from tests.support.polling import eventually, eventually_sync

SETTLE_SECONDS = 5.0
"""Threads that end and children that are reaped may take this long."""


@contextmanager
def no_leaks(*folders: Path) -> Generator[None]:
    """Fail if more is held after the `with` than before it, the files of these folders included."""
    before = held(*folders)
    yield
    with suppress(pytest.fail.Exception):
        eventually_sync(lambda: not come(before, *folders), SETTLE_SECONDS)
    _complain(come(before, *folders))


@pytest.fixture
async def leak_check(tmp_path: Path) -> AsyncGenerator[None]:
    """The test leaves nothing behind: on its loop, in its process, in its `tmp_path / "run"` folder."""
    run_dir = tmp_path / "run"
    # uvloop opens what it needs for children with the first of them, and keeps it.
    await (await asyncio.create_subprocess_exec("true")).wait()
    before = held(run_dir)
    yield
    with suppress(pytest.fail.Exception):
        await eventually(lambda: not come(before, run_dir), SETTLE_SECONDS)
    _complain(come(before, run_dir))


def _complain(left: list[str]) -> None:
    if left:
        pytest.fail(f"left behind: {left}", pytrace=False)


def come(before: Counter[str], *folders: Path) -> list[str]:
    """What is held now and was not before."""
    return sorted((held(*folders) - before).elements())


def held(*folders: Path) -> Counter[str]:
    """What this process holds at the moment, each thing under the name that a failure shows."""
    return Counter([*_descriptors(), *_children(), *_threads(), *_tasks(), *_files(folders)])


def _descriptors() -> Iterator[str]:
    """Each open descriptor by its kind: numbers are reused, and a pipe's name says nothing."""
    for name in os.listdir("/dev/fd"):
        # The listing's own descriptor is closed by now.
        with suppress(OSError):
            yield f"fd: {_kind(int(name))}"


def _kind(fd: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]
    return stat.filemode(os.fstat(fd).st_mode)


def _children() -> Iterator[str]:
    """Children and theirs, zombies included."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            yield f"child: {child.pid} {child.name()} ({child.status()})"


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        yield f"thread: {thread.name}"


def _tasks() -> Iterator[str]:
    """Tasks of the running loop but for the one that asks."""
    with suppress(RuntimeError):
        for task in asyncio.all_tasks(asyncio.get_running_loop()) - {asyncio.current_task()}:
            yield f"task: {task.get_name()}"


def _files(folders: tuple[Path, ...]) -> Iterator[str]:
    for folder in folders:
        for path in folder.rglob("*"):
            yield f"file: {path.relative_to(folder)}"
