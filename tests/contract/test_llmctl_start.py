"""llmctl's help, its speed, and what it may import."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, environment, llmctl

from llmctl.command_table import COMMANDS

NAMES = [entry.name for _, members in COMMANDS for entry in members]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("GET", "/llm/status", fake.daemon_status())
        yield daemon


def imported(socket_path: Path, *arguments: str) -> set[str]:
    """The modules that one run imports."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "llmctl", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment(socket_path),
        timeout=30,
    )
    return {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}


def test_help_lists_every_command(tmp_path: Path) -> None:
    """`llmctl --help` needs no daemon, and fits 80 columns."""
    ended = llmctl(tmp_path / "absent", "--help")
    assert ended.code == 0
    assert [name for name in NAMES if f"\n  {name} " not in ended.stdout] == []
    assert max(map(len, ended.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_teaches_by_example(tmp_path: Path, name: str) -> None:
    """Every command's help ends with lines that can be copied."""
    shown = llmctl(tmp_path / "absent", name, "--help").stdout
    examples = shown.partition("examples:\n")[2]
    assert name in examples


def test_status_in_a_pipe_imports_nothing_that_is_slow(daemon: FakeDaemon) -> None:
    """No rich, no server code, nothing of the daemon but its Structs and paths."""
    modules = imported(daemon.socket_path, "status")
    assert "msgspec" in modules
    heavy = ("rich", "aiohttp", "uvloop", "asyncio", "yaml", "structlog", "psutil", "readline", "subprocess")
    assert {module for module in modules if module.split(".")[0] in heavy} == set()
    ours = {module for module in modules if module.split(".")[0] in {"llmvisor", "llmvisor_runtimes"}}
    packages = {"llmvisor", "llmvisor.control", "llmvisor.control.api", "llmvisor.control.paths"}
    assert {module for module in ours if not module.startswith("llmvisor.control.api.")} == packages


def test_help_imports_neither_http_nor_msgspec(tmp_path: Path) -> None:
    """Help has to be there at once."""
    modules = imported(tmp_path / "absent", "--help")
    assert "argparse" in modules
    assert {"http.client", "msgspec", "rich"} & modules == set()


def test_dumb_terminal_gets_plain_text(daemon: FakeDaemon) -> None:
    """TERM=dumb is treated as a pipe."""
    with TerminalRun(daemon.socket_path, "status", env={"TERM": "dumb"}) as run:
        assert run.wait() == 0
    assert "loaded" in run.raw
    assert "\x1b" not in run.raw


def test_version_is_the_packages(tmp_path: Path) -> None:
    """`llmctl --version`."""
    assert llmctl(tmp_path / "absent", "--version").stdout.startswith("llmctl 0.")


def test_completion_of_commands_imports_neither_http_nor_msgspec(tmp_path: Path) -> None:
    """TAB has to answer at once; only models, jobs and keys need the daemon."""
    modules = imported(tmp_path / "absent", "__complete", "bash", "llmctl sta")
    assert "argparse" in modules
    assert {"http.client", "msgspec", "rich", "yaml"} & modules == set()


@pytest.mark.parametrize("arguments", [("--help",), ("status",)], ids=" ".join)
def test_start_takes_a_moment(daemon: FakeDaemon, arguments: tuple[str, ...]) -> None:
    """A third of a second of work at the most, whatever else the machine does: 50 ms and 90 ms is what it takes."""
    spent: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert llmctl(daemon.socket_path, *arguments).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.35


def test_bars_have_no_colours_with_no_color(daemon: FakeDaemon) -> None:
    """NO_COLOR holds for progress too; the bars themselves stay."""
    daemon.answer("POST", "/jobs", fake.install_job(), status=202)
    daemon.stream("GET", "/jobs/job_01/events", [("job", fake.install_job())], hold_open=True)
    with TerminalRun(daemon.socket_path, "install", "starter", env={"NO_COLOR": "1"}) as run:
        run.expect("50 of 100 MiB")
        run.interrupt(until="goes on")
        assert run.wait() == 130
    assert "━" in run.text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", run.raw)
