"""A worker lives on while the process that started it executes itself anew, and the new program takes it over."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import alive
from tests.support.leaks import no_leaks
from tests.support.polling import eventually, eventually_sync

from llmvisor.supervision.workers.adopt import AdoptedProcess, children_but, end_children

SCRIPT = Path(__file__).parents[1] / "support" / "reexecuted.py"
ROOT = Path(__file__).parents[2]


def run(folder: Path, end: str, *, script: str = "serve", turns: int = 1) -> subprocess.Popen[str]:
    environment = {**os.environ, "SCRIPT": script, "TURNS": str(turns), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", str(SCRIPT), str(folder), end]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def said(folder: Path, end: str, *, script: str = "serve", turns: int = 1) -> dict[str, list[str]]:
    """What every run printed, by the first word."""
    with run(folder, end, script=script, turns=turns) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    lines: dict[str, list[str]] = {}
    for line in output.splitlines():
        word, _, rest = line.partition(" ")
        lines.setdefault(word, []).append(rest)
    return lines


def test_worker_is_the_same_after_its_parent_executed_itself_anew(tmp_path: Path) -> None:
    """Five times over: the same pid, it answers in every run, and it ends when it is asked to."""
    lines = said(tmp_path, "close", turns=5)
    assert len(set(lines["adopted"])) == 1
    assert lines["text"] == [f"[{turn}]" for turn in (5, 4, 3, 2, 1, 0)]
    assert lines["ended"] == ["stopped: the test asks (exited with code 0)"]
    assert not alive(int(lines["adopted"][0]))


def test_descriptors_of_a_worker_that_was_adopted_often_are_as_many_as_of_a_new_one(tmp_path: Path) -> None:
    """Whatever a run opened beside its worker's pipes ends with it."""
    (tmp_path / "once").mkdir()
    once = said(tmp_path / "once", "close", turns=0)["descriptors"]
    assert said(tmp_path, "close", turns=5)["descriptors"] == once


def test_half_a_report_and_half_a_line_are_taken_over(tmp_path: Path) -> None:
    """What an earlier run had read of a report and of a line goes with the rest of it."""
    lines = said(tmp_path, "close", script="halves", turns=3)
    assert lines["text"] == ["[3]", "[2]", "[1]", "[0]"]
    assert lines["lines"] == ["a beginning and the end"]


def test_end_of_an_adopted_worker_is_told_with_its_signal(tmp_path: Path) -> None:
    """It is a child as before: how it ended is known, and no zombie stays."""
    assert said(tmp_path, "kill")["ended"] == ["stopped: the test asks (killed by SIGKILL)"]


def test_adopted_worker_dies_with_the_process_that_took_it_over(tmp_path: Path) -> None:
    """The kernel's parent-death signal outlasts the execution: the process is the same."""
    with run(tmp_path, "sleep", turns=2) as process:
        assert process.stdout is not None
        pids = [int(line.split()[1]) for line in (process.stdout.readline() for _ in range(6)) if "adopted" in line]
        assert len(pids) == 3
        assert alive(pids[-1])
        process.kill()
    eventually_sync(lambda: not alive(pids[-1]), 5, "the worker dies")


def child(script: str) -> int:
    """One that nobody waits for."""
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


@pytest.mark.both_loops
async def test_adopted_process_that_has_ended_already_is_reaped(leak_check: None) -> None:
    """A child that died between the two runs is found dead, with its code, and leaves no zombie."""
    pid = child("exit 7")
    await eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert await asyncio.wait_for(AdoptedProcess(pid).wait(), 5) == 7
    assert not psutil.pid_exists(pid)


@pytest.mark.both_loops
async def test_adopted_process_tells_of_its_end(leak_check: None) -> None:
    """Whoever waits is told once it comes, also twice."""
    pid = child("exec sleep 100")
    process = AdoptedProcess(pid)
    waiting = [asyncio.ensure_future(process.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [-signal.SIGTERM] * 2


@pytest.mark.both_loops
async def test_adopted_process_is_looked_after_where_no_pidfd_tells(
    leak_check: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old kernel, another system: it is looked at again and again instead."""

    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    pid = child("exec sleep 100")
    process = AdoptedProcess(pid)
    os.kill(pid, signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGTERM


async def test_stranger_is_not_adopted(leak_check: None) -> None:
    """Only a child can be waited for: any other pid is refused, and nothing happens to it."""
    with pytest.raises(ProcessLookupError):
        AdoptedProcess(os.getppid())


def test_children_that_nobody_adopted_are_ended(tmp_path: Path) -> None:
    """Killed with their groups and reaped, but for those that are kept."""
    with no_leaks(tmp_path):
        kept = subprocess.Popen(["sleep", "100"])
        group = subprocess.Popen(
            ["sh", "-c", "sleep 100 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        assert group.stdout is not None
        grandchild = int(group.stdout.readline())
        assert group.pid in children_but([kept.pid])
        assert kept.pid not in children_but([kept.pid])
        end_children([group.pid])
        assert kept.poll() is None
        eventually_sync(lambda: not alive(grandchild), 5, "what it had started ends too")
        kept.kill()
        kept.wait()
        group.stdout.close()
        group.wait()
