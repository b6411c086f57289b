"""systemd and launchd, as far as a service of ours needs them: which files, which commands, what they say of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from llmctl import limits
from llmctl.errors import CtlError, NotFound
from llmctl.service_files import LABEL, SERVICE, SOCKET, File, Setup, launchd_file, systemd_files

Command = list[str]
_NOTIFY_RELOAD = 253
"""The systemd that knows `Type=notify-reload`."""
_PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "MainPID", "StatusText", "UnitFileState", "NRestarts")


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str


class UnitStatus(msgspec.Struct, frozen=True):
    """What the manager says of one unit."""

    name: str
    state: str
    pid: int | None = None
    enabled: str = ""
    text: str = ""


class Manager(Protocol):
    """One of the two, for the machine or for one person."""

    folder: Path
    """Where its files go."""

    def files(self, setup: Setup) -> list[File]: ...

    def names(self) -> list[str]: ...

    def after_install(self, *, changed: Collection[str] = ()) -> list[Command]:
        """`changed` are names of files that were there already, with another text."""
        ...

    def before_uninstall(self) -> list[Command]: ...

    def after_uninstall(self) -> list[Command]: ...

    def start(self) -> list[Command]: ...

    def stop(self) -> list[Command]: ...

    def status(self) -> list[UnitStatus]:
        """Raises `NotFound` where the service is not installed."""
        ...


class Systemd:
    """`systemctl`, with `--user` for one person."""

    def __init__(self, environ: Mapping[str, str], home: Path, *, user: bool) -> None:
        config = Path(environ["XDG_CONFIG_HOME"]) if environ.get("XDG_CONFIG_HOME") else home / ".config"
        self.folder = config / "systemd" / "user" if user else Path("/etc/systemd/system")
        self._user = user
        self._control = ["systemctl", "--user"] if user else ["systemctl"]

    def files(self, setup: Setup) -> list[File]:
        return systemd_files(setup._replace(reload_is_told=_version() >= _NOTIFY_RELOAD), user=self._user)

    def names(self) -> list[str]:
        return [SERVICE, SOCKET]

    def after_install(self, *, changed: Collection[str] = ()) -> list[Command]:
        # A socket that is open stays where it is; restarted it takes the service along.
        moved = [[*self._control, "restart", SOCKET]] if SOCKET in changed else []
        return [[*self._control, "daemon-reload"], [*self._control, "enable", "--now", SOCKET], *moved]

    def before_uninstall(self) -> list[Command]:
        return [[*self._control, "disable", "--now", SOCKET, SERVICE]]

    def after_uninstall(self) -> list[Command]:
        return [[*self._control, "daemon-reload"]]

    def start(self) -> list[Command]:
        return [[*self._control, "start", SOCKET, SERVICE]]

    def stop(self) -> list[Command]:
        # Both at once: a socket that is left listening would start the service again.
        return [[*self._control, "stop", SOCKET, SERVICE]]

    def status(self) -> list[UnitStatus]:
        shown = ran_well([*self._control, "show", f"--property={','.join(_PROPERTIES)}", SERVICE, SOCKET])
        units = [_unit(block) for block in shown.stdout.strip().split("\n\n")]
        if any(unit.state == "not-found" for unit in units):
            raise NotFound("llmvisor is not installed as a service here", hint="llmctl service install")
        return units


class Launchd:
    """`launchctl`, in the person's domain or in the machine's."""

    def __init__(self, home: Path, data: Path, *, user: bool) -> None:
        self.folder = home / "Library" / "LaunchAgents" if user else Path("/Library/LaunchDaemons")
        self._domain = f"gui/{os.getuid()}" if user else "system"
        self._data = data if user else Path("/usr/local/var/llmvisor")
        self._log = home / "Library" / "Logs" / "llmvisor.log" if user else Path("/usr/local/var/log/llmvisor.log")

    def files(self, setup: Setup) -> list[File]:
        control = setup.control or self._data / "run" / "control.sock"
        return [launchd_file(setup, control=control, folder=self._data, log=self._log)]

    def names(self) -> list[str]:
        return [f"{LABEL}.plist"]

    def after_install(self, *, changed: Collection[str] = ()) -> list[Command]:
        del changed  # what it has loaded it neither reads again nor loads once more: it goes in any case
        return [
            *self.before_uninstall(),
            ["launchctl", "bootstrap", self._domain, str(self.folder / f"{LABEL}.plist")],
        ]

    def before_uninstall(self) -> list[Command]:
        return [["launchctl", "bootout", f"{self._domain}/{LABEL}"]] if self._print().code == 0 else []

    def after_uninstall(self) -> list[Command]:
        return []

    def start(self) -> list[Command]:
        return [["launchctl", "kickstart", f"{self._domain}/{LABEL}"]]

    def stop(self) -> list[Command]:
        return [["launchctl", "kill", "SIGTERM", f"{self._domain}/{LABEL}"]]

    def status(self) -> list[UnitStatus]:
        ran = self._print()
        if ran.code != 0:
            raise NotFound("llmvisor is not installed as a service here", hint="llmctl service install")
        found = dict(re.findall(r"^\s*(state|pid|last exit code) = (.+)$", ran.stdout, re.MULTILINE))
        pid = found.get("pid", "")
        text = f"last exit code {found['last exit code']}" if "last exit code" in found else ""
        return [UnitStatus(LABEL, found.get("state", "unknown"), int(pid) if pid.isdigit() else None, text=text)]

    def _print(self) -> Ran:
        """What launchd says of it; exit code 0 where it has loaded it."""
        return run(["launchctl", "print", f"{self._domain}/{LABEL}"])


def manager_here(environ: Mapping[str, str], *, home: Path, data: Path, user: bool) -> Manager:
    """The one that this system has."""
    if sys.platform == "darwin":
        return Launchd(home, data, user=user)
    return Systemd(environ, home, user=user)


def run(command: Sequence[str]) -> Ran:
    """Run a manager's program. Raises `CtlError` where there is none, or where it hangs."""
    try:
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=limits.service_command_seconds_max,
        )
    except FileNotFoundError:
        hint = "without a service manager: llmctl start"
        raise CtlError(f"there is no {command[0]} on this machine", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise CtlError(f"`{' '.join(command)}` does not come to an end") from None
    return Ran(ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"))


def ran_well(command: Sequence[str]) -> Ran:
    """As `run`. Raises `CtlError` with what the program said, too."""
    ran = run(command)
    if ran.code != 0:
        said = ran.stderr.strip() or ran.stdout.strip() or f"exit code {ran.code}"
        raise CtlError(f"`{' '.join(command)}` failed: {said}", hint=_hint(said))
    return ran


def _hint(said: str) -> str | None:
    if "connect to bus" in said or "not been booted" in said:
        return "no systemd runs for you here; in its place: llmctl start (or: loginctl enable-linger)"
    return None


def _version() -> int:
    """systemd's; 0 where it does not say."""
    try:
        found = re.match(r"systemd (\d+)", run(["systemctl", "--version"]).stdout)
    except CtlError:
        return 0
    return int(found[1]) if found else 0


def _unit(block: str) -> UnitStatus:
    found = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    loaded = found.get("LoadState", "not-found") == "loaded"
    pid = found.get("MainPID", "0")
    restarts = found.get("NRestarts", "0")
    text = found.get("StatusText", "") or (f"{restarts} restarts" if restarts not in {"0", ""} else "")
    return UnitStatus(
        found.get("Id", "?"),
        f"{found.get('ActiveState', '?')} ({found.get('SubState', '?')})" if loaded else "not-found",
        int(pid) if pid.isdigit() and pid != "0" else None,
        found.get("UnitFileState", ""),
        text,
    )
