"""The trial of a new program: it says yes by ending well, all else is a no with a reason, in bounded time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.polling import eventually

from llmvisor import limits
from llmvisor.upgrade.memory_file import write_memory_file
from llmvisor.upgrade.preflight import preflight


async def tried(script: str) -> str | None:
    """What comes of a program that is this Python script."""
    fd = write_memory_file(b"state")
    try:
        return await preflight([sys.executable, "-c", script], os.environ, fd)
    finally:
        os.close(fd)


@pytest.fixture
async def once() -> None:
    """uvloop keeps a descriptor of the first child whose output is read."""
    assert await tried("") is None


async def test_program_that_ends_well_has_read_the_state_that_it_was_given(once: None, leak_check: None) -> None:
    """By the descriptor that its environment names; it knows that it is only tried."""
    script = """
import os
assert os.pread(int(os.environ["LLMVISOR_UPGRADE_FD"]), 100, 0) == b"state"
assert os.environ["LLMVISOR_PREFLIGHT"]
print("all is well")
"""
    assert await tried(script) is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(78)", "(exit code 78): it said nothing"),
        (
            "print('a.yaml:3: no'); print('a.yaml:4: no'); raise SystemExit(78)",
            "(exit code 78): a.yaml:3: no a.yaml:4: no",
        ),
        (
            "import there_is_no_such_module",
            "(exit code 1): ModuleNotFoundError: No module named 'there_is_no_such_module'",
        ),
        ("import os; os.kill(os.getpid(), 11)", "(exit code -11): it said nothing"),
    ],
)
async def test_program_that_cannot_start_says_why(script: str, reason: str, once: None, leak_check: None) -> None:
    """Its own words, or the last line of its traceback."""
    assert await tried(script) == f"the new daemon cannot start {reason}"


async def test_program_that_says_too_much_is_cut(once: None, leak_check: None) -> None:
    """The reason stands in a status: a megabyte would not."""
    reason = await tried("print('x' * 1_000_000); raise SystemExit(1)")
    assert reason is not None
    assert len(reason) < 1000


async def test_program_that_does_not_end_is_killed(
    once: None, leak_check: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reaped: no process of it stays."""
    monkeypatch.setattr(limits, "upgrade_preflight_seconds_max", 0.3)
    reason = await tried("import time; time.sleep(1000)")
    assert reason == "the new daemon did not say within 0.3 s that it can start"
    await eventually(lambda: not psutil.Process().children())


async def test_program_that_is_not_there_is_told(tmp_path: Path, once: None, leak_check: None) -> None:
    reason = await preflight([str(tmp_path / "absent")], os.environ, 0)
    assert reason == f"{tmp_path / 'absent'} cannot be started: No such file or directory"
