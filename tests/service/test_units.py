"""The unit files and property lists: accepted by systemd, locked in, and right for whatever program they start."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.service_files import (
    MARK,
    SERVICE,
    SOCKET,
    Setup,
    launchd_file,
    quoted,
    socket_address,
    systemd_files,
)
from llmvisor import limits
from llmvisor.config.tree import Server

PROGRAM = (sys.executable, "-P", "-m", "llmvisor")
SETUP = Setup(PROGRAM, ("127.0.0.1", 8000))
EXPOSURE_MAX = 2.0


def systemd_version() -> int:
    """0 where it is not installed."""
    if shutil.which("systemd-analyze") is None:
        return 0
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else 0


needs_systemd = pytest.mark.skipif(systemd_version() < 252, reason="systemd-analyze 252 or later is not installed here")


def write(setup: Setup, folder: Path, *, user: bool) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for file in systemd_files(setup, user=user):
        (folder / file.name).write_text(file.text)
    return [folder / SERVICE, folder / SOCKET]


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="lv-") as run_folder:
        return subprocess.run(
            ["systemd-analyze", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "XDG_RUNTIME_DIR": run_folder},
        )


def settings(text: str) -> dict[str, list[str]]:
    """Each setting with its values in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


# ------------------------------------------------------------------------------------------------------- systemd


@needs_systemd
@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("environment", [{}, {"LLMVISOR_CONFIG": '/a b/"$HOME"/100%.yaml'}])
def test_units_verify_without_a_word(tmp_path: Path, environment: dict[str, str], *, user: bool) -> None:
    """`verify` tells of unknown settings on stderr alone, and exits 0 all the same: not a word is right."""
    setup = SETUP._replace(environment=environment, control=tmp_path / "a b" / "control.sock")
    checked = analyze("verify", "--user" if user else "--system", *write(setup, tmp_path / "units", user=user))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@needs_systemd
def test_verify_would_tell_of_a_mistake(tmp_path: Path) -> None:
    """What the test above relies on."""
    paths = write(SETUP, tmp_path, user=False)
    paths[0].write_text(paths[0].read_text().replace("OOMPolicy=", "OomPolicy="))
    assert "OomPolicy" in analyze("verify", *paths).stderr


@needs_systemd
def test_service_of_the_machine_is_locked_in(tmp_path: Path) -> None:
    """Its exposure, as `systemd-analyze security` counts it, is 2.0 or better."""
    service = write(SETUP, tmp_path, user=False)[0]
    checked = analyze("security", "--offline=true", "--no-pager", f"--threshold={int(EXPOSURE_MAX * 10)}", service)
    assert checked.returncode == 0, checked.stdout
    found = re.search(r"Overall exposure level for llmvisor.service: ([\d.]+)", checked.stdout)
    assert found is not None
    assert float(found[1]) <= EXPOSURE_MAX


@pytest.mark.parametrize("user", [False, True])
def test_units_say_how_it_is_supervised(*, user: bool) -> None:
    """What the daemon relies on: it is told of readiness and hangs, drains alone, and outlives a worker's OOM kill."""
    service, socket = (settings(file.text) for file in systemd_files(SETUP, user=user))
    expected = {
        "Type": "notify",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "78",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "Requires": "llmvisor.socket",
    }
    assert {name: service[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert float(service["TimeoutStopSec"][0]) > Server().drain_timeout
    assert limits.body_seconds_max < float(service["TimeoutStopSec"][0])
    assert int(service["LimitNOFILE"][0]) >= limits.open_files_wanted
    assert socket["SocketMode"] == ["0600"]
    assert socket["DirectoryMode"] == ["0700"]
    # These take the GPU away.
    assert not {"PrivateDevices", "MemoryDenyWriteExecute", "ProcSubset"} & service.keys()


def test_newer_systemd_waits_for_what_the_daemon_says_of_its_reload() -> None:
    """From 253 on; an older one takes neither `notify-reload` nor an error for it."""
    service = settings(systemd_files(SETUP._replace(reload_is_told=True), user=False)[0].text)
    assert service["Type"] == ["notify-reload"]
    assert "ExecReload" not in service


@pytest.mark.parametrize(
    ("host", "port", "lines"),
    [
        ("127.0.0.1", 8123, ["127.0.0.1:8123"]),
        ("localhost", 8000, ["127.0.0.1:8000"]),
        ("::1", 8000, ["[::1]:8000"]),
        ("0.0.0.0", 8000, ["0.0.0.0:8000"]),
        ("127.0.0.1", 0, []),
        ("host.example", 8000, []),
    ],
)
def test_socket_unit_listens_where_the_configuration_says(host: str, port: int, lines: list[str]) -> None:
    """A port of its own choice, or a name that has to be looked up, stays the daemon's."""
    socket = settings(systemd_files(Setup(PROGRAM, socket_address(host, port)), user=True)[1].text)
    assert socket["ListenStream"] == [*lines, "%t/llmvisor/control.sock"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_words_stay_as_they_are(word: str) -> None:
    """Whatever is in a path: blanks, quotes, backslashes, specifiers; undone as systemd.syntax(7) says."""
    text = quoted(word)
    inner = text[1:-1] if text.startswith('"') else text
    assert re.sub(r"\\(.)", r"\1", inner).replace("%%", "%") == word
    if not text.startswith('"'):
        assert not re.search(r"""[\s"'\\;$]""", text)
        assert text


@needs_systemd
@pytest.mark.parametrize("name", ["a b", "100%", "$HOME", "a;b", "ümlaut"])
def test_program_in_an_odd_place_is_found(tmp_path: Path, name: str) -> None:
    """systemd itself looks for the program: it finds it where it is."""
    program = tmp_path / name / "llmvisor"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths = write(Setup((str(program), name), ("127.0.0.1", 8000)), tmp_path / "units", user=True)
    checked = analyze("verify", "--user", *paths)
    assert (checked.returncode, checked.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------------- launchd


def property_list(address: tuple[str, int] | None = ("127.0.0.1", 8000)) -> dict[str, object]:
    setup = Setup(PROGRAM, address, environment={"LLMVISOR_CONFIG": "/a & b/<c>.yaml"})
    folder = Path("/Users/me/data")
    file = launchd_file(setup, control=folder / "run" / "control.sock", folder=folder, log=Path("/Users/me/l.log"))
    return plistlib.loads(file.text.encode())


def test_property_list_says_how_it_is_supervised() -> None:
    """Its sockets have the names that the daemon asks for; a failed start is not tried in a storm."""
    tree = property_list()
    assert tree["ProgramArguments"] == list(PROGRAM)
    assert tree["KeepAlive"] == {"SuccessfulExit": False}
    assert tree["ThrottleInterval"] == 10
    assert tree["ProcessType"] == "Interactive"
    assert tree["EnvironmentVariables"] == {"LLMVISOR_CONFIG": "/a & b/<c>.yaml"}
    exit_timeout = tree["ExitTimeOut"]
    assert isinstance(exit_timeout, int)
    assert exit_timeout > Server().drain_timeout
    sockets = tree["Sockets"]
    assert isinstance(sockets, dict)
    assert sockets == {
        "http": {
            "SockNodeName": "127.0.0.1",
            "SockServiceName": "8000",
            "SockType": "stream",
            "SockFamily": "IPv4",
        },
        "control": {"SockPathName": "/Users/me/data/run/control.sock", "SockPathMode": 0o600},
    }


def test_property_list_without_a_fixed_port_has_the_control_socket_alone() -> None:
    """As with systemd."""
    sockets = property_list(address=None)["Sockets"]
    assert isinstance(sockets, dict)
    assert sockets.keys() == {"control"}


# ------------------------------------------------------------------------------------------------------- packaging


def test_files_say_who_wrote_them() -> None:
    """So that an installation does not overwrite what somebody else has written."""
    texts: Sequence[str] = [file.text for user in (False, True) for file in systemd_files(SETUP, user=user)]
    assert all(text.startswith(MARK) for text in texts)


def test_files_are_where_packages_put_them() -> None:
    """An installation for the whole machine has the units in systemd's own search path."""
    root = Path(__file__).resolve().parents[2]
    text = (root / "pyproject.toml").read_text()
    for name in (SERVICE, SOCKET):
        for kind in ("system", "user"):
            assert f'"ctl/llmctl/units/{kind}/{name}" = "lib/systemd/{kind}/{name}"' in text
            assert (root / "ctl/llmctl/units" / kind / name).is_file()
    assert '"ctl/llmctl/units/launchd/org.llmvisor.plist" = "share/llmvisor/org.llmvisor.plist"' in text
