"""The service under a real systemd: PID 1 of a machine of its own, into which nothing of this one is but programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
TRIAL_SECONDS_MAX = 110
_SHARED = ("--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--ipc", "--uts", "--net")


def cgroup2() -> Path | None:
    """Where the machine has its cgroups, version 2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None


def obstacle() -> str | None:
    """Why no systemd can be run here; None = it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "takes root on Linux"
    programs = ("unshare", "pivot_root", "curl", "systemctl", "/usr/lib/systemd/systemd")
    if missing := [name for name in programs if shutil.which(name) is None]:
        return f"{missing[0]} is not installed"
    if not ROOT.stat().st_mode & 0o005:
        return "the checkout is closed to other users"
    if subprocess.run(["unshare", *_SHARED, "true"], capture_output=True, check=False).returncode:
        return "no namespaces may be made here"
    groups = cgroup2()
    return None if groups is not None and os.access(groups, os.W_OK) else "no cgroups may be made here"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, str]]:
    """What the trial found, by name."""
    if (reason := obstacle()) is not None:
        pytest.skip(reason)
    groups = cgroup2()
    assert groups is not None
    group = groups / f"llmvisor-trial-{os.getpid()}"
    group.mkdir()
    try:
        yield run_trial(tmp_path_factory.mktemp("machine"), group)
    finally:
        remove_groups(group)


def run_trial(folder: Path, group: Path) -> dict[str, str]:
    variables = {
        "LV_ROOT": str(folder),
        "LV_CHECKOUT": str(ROOT),
        "LV_PYTHON": sys.base_prefix,
        "LV_PACKAGES": sysconfig.get_path("purelib"),
        "LV_TRIAL": str(SUPPORT / "systemd_trial.sh"),
    }
    enter = 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"'
    command = ["unshare", *_SHARED, "bash", str(SUPPORT / "systemd_machine.sh")]
    with (folder.parent / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", enter, "bash", str(group), *command],
            env={"PATH": os.environ["PATH"], **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    text = ""
    deadline = time.monotonic() + TRIAL_SECONDS_MAX
    try:
        while "=over" not in text and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            text = read_inside(process.pid, "out")
        errors = read_inside(process.pid, "errors")
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    print(text, errors, (folder.parent / "systemd.log").read_text(errors="replace")[-4000:])
    lines = [line[1:].strip().partition(" ") for line in text.splitlines() if line.startswith("=")]
    return {name: value.strip() for name, _, value in lines}


def read_inside(pid: int, name: str) -> str:
    """A file of the machine's /run."""
    try:
        init = psutil.Process(pid).children()[0].pid
        return Path("/proc", str(init), "root", "run", name).read_text(errors="replace")
    except (OSError, IndexError, psutil.Error):
        return ""


def remove_groups(group: Path) -> None:
    for path, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.1)


@pytest.mark.timeout(150)
def test_first_client_starts_it_as_a_user_of_its_own(answers: dict[str, str]) -> None:
    """Installed it waits; one request makes systemd start it, ready once it accepts, with its port in StateDirectory;
    llmctl talks to it over systemd's socket."""
    assert answers["install"] == "0"
    assert answers["installed"] == "inactive"
    assert answers["first_client"] == "200"
    assert answers["activated"] in {"active yes notify success", "active yes notify-reload success"}
    assert answers["port_file"] == "8000"
    assert answers["status"] == f"{answers['main_pid']} /run/llmvisor/control.sock"
    assert answers["status_text"].startswith("http://127.0.0.1:8000: mock ")


@pytest.mark.timeout(150)
def test_idle_exit_and_the_next_client_starts_it_again(answers: dict[str, str]) -> None:
    """It ends well by itself, and costs the next client a start."""
    assert answers["idle"] == "inactive success 0"
    assert answers["second_client"] == "200"


@pytest.mark.timeout(150)
def test_reload_kill_and_restart_lose_no_client(answers: dict[str, str]) -> None:
    """After SIGKILL of everything it is there again; whoever asks during `systemctl restart` waits and is served."""
    assert answers["reload"] == "0 active"
    assert answers["after_kill"].startswith("200 ")
    assert answers["during_restart"] == "10 200"


@pytest.mark.timeout(150)
def test_upgrade_in_place_keeps_pid_worker_and_sockets(answers: dict[str, str]) -> None:
    """The new program goes on as the same service: systemd sees a reload."""
    assert answers["upgrade"].startswith("0 same 200 "), answers["upgrade"]


@pytest.mark.timeout(150)
def test_watchdog_restarts_a_daemon_that_hangs(answers: dict[str, str]) -> None:
    """Fed it is left alone for longer than the watchdog's time; stopped it is replaced."""
    assert answers["fed"] == answers["fed_after_upgrade"] == "0 active"
    assert int(answers["starved"]) >= 1
    assert answers["after_watchdog"] == "200"


@pytest.mark.timeout(150)
def test_install_after_a_change_of_the_port_moves_the_socket(answers: dict[str, str]) -> None:
    """systemd leaves a socket that is open where it is, unless it is told."""
    assert answers["moved"] == "0 200 000"


@pytest.mark.timeout(150)
def test_stop_start_and_uninstall(answers: dict[str, str]) -> None:
    """Stopped nobody answers; a wrong configuration exits 78 and is not tried in a storm; nothing is left."""
    assert answers["stop"] == "0 inactive 000"
    assert answers["start"] == "0 active 200"
    assert answers["wrong_configuration"] == "78 0"
    assert answers["uninstall"] == "0 0"
