"""The leak check itself: it finds what a test may leave behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest
from tests.support import leaks
from tests.support.leaks import come, held, no_leaks


async def test_leak_check_sees_each_kind_of_leak(tmp_path: Path, leak_check: None) -> None:
    """A pipe, a child, a thread, a task and a file are each named."""
    before = held(tmp_path)
    assert come(before, tmp_path) == []
    reads, writes = os.pipe()
    child = await asyncio.create_subprocess_exec("sleep", "1000")
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="lost")
    thread.start()
    task = asyncio.create_task(asyncio.sleep(1000), name="forgotten")
    (tmp_path / "left").write_text("")
    found = come(before, tmp_path)
    child.kill()
    await child.wait()
    assert found == [
        f"child: {child.pid} sleep (sleeping)",
        "fd: pipe",
        "fd: pipe",
        "file: left",
        "task: forgotten",
        "thread: lost",
    ]
    os.close(reads)
    os.close(writes)
    ended.set()
    thread.join()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (tmp_path / "left").unlink()
    assert come(before, tmp_path) == []


def test_leak_check_sees_a_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that has ended and was never waited for is left behind."""
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.1)
    children: list[subprocess.Popen[bytes]] = []
    with pytest.raises(pytest.fail.Exception, match="zombie"), no_leaks():
        children.append(subprocess.Popen(["true"]))
    children[0].wait()


def test_leak_check_waits_for_what_is_about_to_go() -> None:
    """A thread that ends a moment later is no leak."""
    timer = threading.Timer(0.1, lambda: None)
    with no_leaks():
        timer.start()
    assert not timer.is_alive()
