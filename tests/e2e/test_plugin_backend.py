"""A backend of a third party, in an interpreter of its own: nothing of llmvisor knows its name."""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json
from tests.support.leaks import no_leaks
from tests.support.llmctl_process import llmctl

SOURCE = """
from llmvisor_runtimes.mock import MockBackend


class ParrotBackend(MockBackend):
    name = "parrot"

    def version(self):
        return "7.5"

    def devices(self):
        return ["perch"]
"""


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has the plug-in beside what the tests' own has."""
    folder = tmp_path_factory.mktemp("parrot")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "parrot_backend.py").write_text(SOURCE)
    info = packages / "parrot-7.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrot\nVersion: 7.5\n")
    (info / "entry_points.txt").write_text("[llmvisor.runtimes]\nparrot = parrot_backend:ParrotBackend\n")
    ours = sysconfig.get_paths()["purelib"]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def daemon(interpreter: Path) -> Generator[Daemon]:
    config: Json = {
        "models": {"polly": {"backend": "parrot", "path": str(interpreter), "options": {"reply_tokens": 3}}},
        "backends": {"parrot": {"python": str(interpreter)}, "absent": {"python": "/nonexistent/python"}},
    }
    with no_leaks(), Daemon(config) as one:
        yield one


def test_plugin_serves_from_its_own_interpreter(daemon: Daemon) -> None:
    """A model of that backend answers, and its worker runs in that interpreter."""
    status, answer = daemon.complete("polly")
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 3
    runtime = daemon.runtime("polly")
    assert (runtime["backend"], runtime["backend_version"]) == ("parrot", "7.5")


def test_backends_are_listed_with_what_is_missing(daemon: Daemon, interpreter: Path) -> None:
    """Each backend: version and devices where its engine imports, and how to get it where it does not."""
    status, answer = daemon.control("GET", "/llm/backends")
    assert status == 200
    found = {backend["name"]: backend for backend in answer["data"]}
    assert {"absent", "flag", "llamacpp", "mlx", "mock", "parrot"} <= found.keys()
    parrot, absent, llamacpp = found["parrot"], found["absent"], found["llamacpp"]
    assert (parrot["usable"], parrot["version"], parrot["devices"]) == (True, "7.5", ["perch"])
    assert parrot["python"] == str(interpreter)
    assert (absent["usable"], absent["installed"]) == (False, False)
    assert "No such file" in absent["error"]
    assert "llmvisor" in absent["hint"]
    assert llamacpp["usable"]
    assert "cpu" in llamacpp["devices"]
    assert llamacpp["python"] == sys.executable


def test_llmctl_shows_the_backends(daemon: Daemon) -> None:
    """A table for people, with the command that installs what is missing."""
    shown = llmctl(daemon.socket_path, "backends", cwd=daemon.folder)
    assert shown.code == 0, shown
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert "ready" in rows["parrot"]
    assert "perch" in rows["parrot"]
    assert "not installed" in rows["absent"]
