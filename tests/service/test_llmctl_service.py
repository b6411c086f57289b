"""`llmctl service` with a systemctl that writes down what it is asked, and `llmctl start`/`stop` with a real daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, alive, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.llmctl_process import Ended, llmctl
from tests.support.service_manager import Activated, short_folder

MODELS = {"slow": mock_model(token_delay_ms=20)}
SHOWN = """\
Id=llmvisor.service
LoadState={loaded}
ActiveState=active
SubState=running
MainPID=4711
StatusText=http://127.0.0.1:8000: light \x1b[31mbusy
UnitFileState=disabled
NRestarts=0

Id=llmvisor.socket
LoadState={loaded}
ActiveState=active
SubState=running
UnitFileState=enabled
"""
_SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
  *--version*) echo "systemd {version} ({version})";;
  *{fails}*) echo "{complaint}" >&2; exit 1;;
  *show*) cat "{shown}";;
esac
"""


class Machine:
    """A home folder, and a systemctl first on the path."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.units = self.home / ".config" / "systemd" / "user"
        self.log = folder / "asked"
        self.shown = folder / "shown"
        self._bin = folder / "bin"
        for path in (self.home, self._bin):
            path.mkdir()
        self.env = {"HOME": str(self.home), "PATH": f"{self._bin}:{os.environ['PATH']}"}
        self.systemctl()

    def systemctl(
        self, *, version: int = 252, fails: str = "nothing", complaint: str = "", loaded: bool = True
    ) -> None:
        self.shown.write_text(SHOWN.format(loaded="loaded" if loaded else "not-found"))
        program = self._bin / "systemctl"
        program.write_text(
            _SYSTEMCTL.format(log=self.log, shown=self.shown, version=version, fails=fails, complaint=complaint)
        )
        program.chmod(0o755)

    def asked(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if "--version" not in line]

    def llmctl(self, *arguments: str, env: dict[str, str] | None = None) -> Ended:
        return llmctl(self.home / "none.sock", *arguments, env={**self.env, **(env or {})})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd")


@linux
def test_install_writes_both_units_and_enables_the_socket(machine: Machine) -> None:
    """The program is this installation's, the places are this person's; nothing is left beside the units."""
    ended = machine.llmctl("service", "install", "--user")
    assert ended.code == 0, ended.stderr
    assert sorted(os.listdir(machine.units)) == ["llmvisor.service", "llmvisor.socket"]
    service = (machine.units / "llmvisor.service").read_text()
    assert f"ExecStart={sys.executable} -P -m llmvisor\n" in service
    assert f"WorkingDirectory=-{machine.home}/.local/share/llmvisor\n" in service
    assert "Type=notify\n" in service
    assert (machine.home / ".local/share/llmvisor").is_dir()
    assert stat.S_IMODE((machine.units / "llmvisor.socket").stat().st_mode) == 0o644
    assert machine.asked() == ["--user daemon-reload", "--user enable --now llmvisor.socket"]
    assert machine.llmctl("service", "install", "--user").code == 0  # and again, as after an update
    assert machine.asked() == ["--user daemon-reload", "--user enable --now llmvisor.socket"]
    (machine.home / "config.yaml").write_text("server: {port: 8123}\n")
    elsewhere = {"LLMVISOR_CONFIG": str(machine.home / "config.yaml")}
    assert machine.llmctl("service", "install", "--user", env=elsewhere).code == 0
    assert machine.asked()[-1] == "--user restart llmvisor.socket"


@linux
def test_install_goes_by_the_configuration(machine: Machine) -> None:
    """The socket is opened where the daemon would open it; places of the shell go along, keys do not."""
    config = machine.home / "my config.yaml"
    config.write_text("server: {port: 8123, host: '::1'}\ncontrol: {socket: /run/user/7/x.sock}\n")
    machine.systemctl(version=254)
    ended = machine.llmctl(
        "service", "install", "--user", env={"LLMVISOR_CONFIG": str(config), "OPENAI_API_KEY": "canary"}
    )
    assert ended.code == 0, ended.stderr
    socket = (machine.units / "llmvisor.socket").read_text()
    assert "ListenStream=[::1]:8123\nListenStream=/run/user/7/x.sock\n" in socket
    service = (machine.units / "llmvisor.service").read_text()
    assert f'Environment="LLMVISOR_CONFIG={config}"\n' in service
    assert "Type=notify-reload\n" in service
    assert "canary" not in service


@linux
def test_dry_run_touches_nothing(machine: Machine) -> None:
    """It prints whole files and the commands."""
    ended = machine.llmctl("service", "install", "--user", "--dry-run")
    assert ended.code == 0, ended.stderr
    assert f"# {machine.units}/llmvisor.socket\n" in ended.stdout
    assert ended.stdout.endswith("systemctl --user daemon-reload\nsystemctl --user enable --now llmvisor.socket\n")
    assert not machine.units.exists()
    assert machine.asked() == []
    machine.llmctl("service", "install", "--user")
    machine.asked()
    ended = machine.llmctl("service", "uninstall", "--user", "--dry-run", "--json")
    assert json.loads(ended.stdout)["commands"][0][-3:] == ["--now", "llmvisor.socket", "llmvisor.service"]
    assert (machine.units / "llmvisor.service").exists()
    assert machine.asked() == []


@linux
def test_wrong_configuration_is_not_installed(machine: Machine) -> None:
    """The service would exit 78 for ever."""
    config = machine.home / "config.yaml"
    config.write_text("server: {prot: 1}\n")
    ended = machine.llmctl("service", "install", "--user", env={"LLMVISOR_CONFIG": str(config)})
    assert ended.code == 1
    assert "server.prot" in ended.stderr
    assert not machine.units.exists()


@linux
def test_uninstall_stops_and_removes_what_is_ours(machine: Machine) -> None:
    """In that order; a unit that somebody else has written is left alone, and so is everything else."""
    machine.llmctl("service", "install", "--user")
    machine.asked()
    ended = machine.llmctl("service", "uninstall", "--user")
    assert ended.code == 0, ended.stderr
    assert machine.asked() == ["--user disable --now llmvisor.socket llmvisor.service", "--user daemon-reload"]
    assert os.listdir(machine.units) == []
    assert machine.llmctl("service", "uninstall", "--user").code == 4
    (machine.units / "llmvisor.service").write_text("[Service]\n")
    for action in ("uninstall", "install"):
        ended = machine.llmctl("service", action, "--user")
        assert (ended.code, "was not written by llmctl" in ended.stderr) == (1, True)
    assert (machine.units / "llmvisor.service").read_text() == "[Service]\n"
    assert machine.asked() == []


@linux
@pytest.mark.parametrize("action", ["start", "stop"])
def test_start_and_stop_are_of_service_and_socket(machine: Machine, action: str) -> None:
    """A socket that were left listening would start the service again."""
    assert machine.llmctl("service", action, "--user").code == 0
    assert machine.asked() == [f"--user {action} llmvisor.socket llmvisor.service"]


@linux
def test_status_shows_what_the_manager_says(machine: Machine) -> None:
    """Both units with state, pid and the daemon's own line, which cannot steer the terminal; 4 where none is."""
    ended = machine.llmctl("service", "status", "--user")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.splitlines()[1].split()[:5] == ["llmvisor.service", "active", "(running)", "4711", "disabled"]
    assert "http://127.0.0.1:8000: light" in ended.stdout
    assert "\x1b" not in ended.stdout
    units = json.loads(machine.llmctl("service", "status", "--user", "--json").stdout)["data"]
    assert [(unit["name"], unit["pid"]) for unit in units] == [("llmvisor.service", 4711), ("llmvisor.socket", None)]
    machine.systemctl(loaded=False)
    ended = machine.llmctl("service", "status", "--user")
    assert (ended.code, "llmctl service install" in ended.stderr) == (4, True)


@linux
def test_what_systemctl_complains_of_is_told(machine: Machine) -> None:
    """With a way out where no systemd runs for this person."""
    machine.systemctl(fails="daemon-reload", complaint="Failed to connect to bus: No medium found")
    ended = machine.llmctl("service", "install", "--user")
    assert ended.code == 1
    assert "`systemctl --user daemon-reload` failed: Failed to connect to bus" in ended.stderr
    assert "llmctl start" in ended.stderr


@linux
def test_machine_without_systemd_is_told_what_to_do(machine: Machine) -> None:
    """Containers have none."""
    ended = machine.llmctl("service", "start", "--user", env={"PATH": "/nowhere"})
    assert ended.code == 1
    assert "there is no systemctl" in ended.stderr
    assert "llmctl start" in ended.stderr


@linux
def test_program_that_a_service_of_the_machine_does_not_see_is_refused(machine: Machine) -> None:
    """`ProtectHome=yes`: it would fail at every start, with an error that says little."""
    ended = machine.llmctl("service", "install", "--dry-run", "--program", "/home/me/venv/bin/llmvisor")
    assert ended.code == 1
    assert "--user" in ended.stderr
    ended = machine.llmctl("service", "install", "--dry-run", "--program", "/opt/llmvisor/bin/llmvisor")
    assert ended.code == 0, ended.stderr
    assert "ExecStart=/opt/llmvisor/bin/llmvisor\n" in ended.stdout
    assert "ListenStream=/run/llmvisor/control.sock\n" in ended.stdout


# ------------------------------------------------------------------------------------------------- start and stop


class Background(Daemon):
    """A daemon that llmctl starts: only its folders and its configuration are made here."""

    def __init__(self) -> None:
        self.home = short_folder()
        super().__init__({"models": MODELS})


@pytest.fixture
def background() -> Generator[Background]:
    daemon = Background()
    yield daemon
    for pid in [process.pid for process in psutil.process_iter() if _is_of(process, daemon)]:
        os.kill(pid, signal.SIGKILL)
    daemon.__exit__()
    shutil.rmtree(daemon.home)


def _is_of(process: psutil.Process, daemon: Daemon) -> bool:
    try:
        return str(daemon.config_file) in process.cmdline()
    except psutil.Error:
        return False


def ask(daemon: Background, *arguments: str, **env: str) -> Ended:
    return llmctl(daemon.socket_path, *arguments, env={"HOME": str(daemon.home), **env}, cwd=daemon.folder)


def test_start_returns_when_the_daemon_serves_and_stop_when_it_is_gone(background: Background) -> None:
    """It is a session of its own, its console is a file, and a second start leaves it alone."""
    words = ("start", "--", "--config", str(background.config_file))
    ended = ask(background, *words)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.endswith(f"runs on {background.url}\n")
    assert background.complete("slow", max_tokens=1)[0] == 200
    pid = background.control("GET", "/llm/status")[1]["pid"]
    assert os.getsid(pid) == pid
    again = json.loads(ask(background, "start", "--json", *words[1:]).stdout)
    assert (again["pid"], again["started"]) == (pid, False)
    log = background.home / ".local/share/llmvisor/logs/console.log"
    assert "listens on" in log.read_text()
    ended = ask(background, "stop")
    assert (ended.code, ended.stdout) == (0, f"llmvisor (pid {pid}) has stopped\n")
    assert not alive(pid)
    assert not background.socket_path.exists()
    assert ask(background, "stop").code == 3


def test_starts_at_once_yield_one_daemon_and_its_log(background: Background) -> None:
    """One of them starts it, the others find it running; the log is that of the daemon that runs."""
    words = ("start", "--json", "--", "--config", str(background.config_file))
    with ThreadPoolExecutor(3) as pool:
        ended = [start.result() for start in [pool.submit(ask, background, *words) for _ in range(3)]]
    assert [one.code for one in ended] == [0, 0, 0], ended
    assert sorted(json.loads(one.stdout)["started"] for one in ended) == [False, False, True]
    log = (background.home / ".local/share/llmvisor/logs/console.log").read_text()
    assert log.startswith("llmvisor ")
    assert "already running" not in log


def test_start_of_what_cannot_start_tells_its_last_words(background: Background) -> None:
    """Not a time-out, but the daemon's own reason."""
    ended = ask(background, "start", "--", "--config", str(background.config_file), "--port", "none")
    assert ended.code == 1
    assert "exit code 78" in ended.stderr
    assert "server.port" in ended.stderr or "--port" in ended.stderr


def test_start_hands_on_nothing_of_a_service_manager(background: Background) -> None:
    """Whoever calls llmctl may be a service itself: the daemon does not speak for it."""
    env = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "NOTIFY_SOCKET": "@nobody"}
    assert ask(background, "start", "--", "--config", str(background.config_file), **env).code == 0
    pid = background.control("GET", "/llm/status")[1]["pid"]
    assert not {"LISTEN_FDS", "NOTIFY_SOCKET"} & psutil.Process(pid).environ().keys()


def test_stop_does_not_start_the_next_daemon() -> None:
    """1. A daemon runs on its manager's sockets. 2. `llmctl stop`. Result: it waits for the process, and leaves the
    socket alone, where a question would start the daemon again."""
    with no_leaks(), Activated({"models": MODELS}) as daemon:
        daemon.spawn()
        with stream(daemon, "slow", max_tokens=20) as client:
            client.next_event()
        ended = llmctl(daemon.socket_path, "stop")
        # The child is ours, and a zombie until it is waited for.
        assert daemon.wait() == 0
        assert ended.code == 0, ended.stderr
        assert not daemon.somebody_waits
