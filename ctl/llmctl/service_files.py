"""The files that make llmvisor a service: those that come with it, with this machine's program and places put in."""

from __future__ import annotations

import ipaddress
import plistlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

LABEL = "org.llmvisor"
PROGRAM_SIGNS_REFUSED = frozenset("\"'\\")
"""systemd starts no program whose path has one of these."""
SERVICE = "llmvisor.service"
SOCKET = "llmvisor.socket"
MARK = "# Written by `llmctl service install`; what you change here it overwrites: use `systemctl edit`."
CARRIED = ("LLMVISOR_CONFIG", "LLMVISOR_DATA_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE")
"""Variables of the shell that a person's service gets: places, and nothing secret."""


class Setup(NamedTuple):
    """What the files depend on."""

    program: Sequence[str]
    """The daemon's own command."""
    address: tuple[str, int] | None
    """Where HTTP is served; None where only the daemon itself can tell (a port of its choice, a host's name)."""
    control: Path | None = None
    """The control socket; None = where the manager puts it by default."""
    folder: Path | None = None
    """Models, logs, `.port`; None = where the manager puts them by default."""
    environment: Mapping[str, str] = {}
    reload_is_told: bool = False
    """systemd 253 and later wait for what the daemon says of its reload."""


class File(NamedTuple):
    name: str
    text: str


def socket_address(host: str, port: int) -> tuple[str, int] | None:
    """What a manager can open in the daemon's place."""
    literal = "127.0.0.1" if host.lower().rstrip(".") == "localhost" else host
    try:
        ipaddress.ip_address(literal)
    except ValueError:
        return None
    return (literal, port) if port else None


def systemd_files(setup: Setup, *, user: bool) -> list[File]:
    """The service and its socket, for the machine or for one person."""
    kind = "user" if user else "system"
    service = _lines(kind, SERVICE)
    # The program's own path is the one word in which systemd replaces no variables.
    program, *words = setup.program
    _put(service, "ExecStart=", " ".join([quoted(program), *(quoted(word).replace("$", "$$") for word in words)]))
    if setup.folder is not None:
        _put(service, "WorkingDirectory=", f"-{specifiers_escaped(str(setup.folder))}")
    if setup.reload_is_told:
        _put(service, "Type=", "notify-reload")
        service.remove(next(line for line in service if line.startswith("ExecReload=")))
    place = next(index for index, line in enumerate(service) if line.startswith("ExecStart=")) + 1
    service[place:place] = [f"Environment={quoted(f'{name}={value}')}" for name, value in setup.environment.items()]
    socket = _lines(kind, SOCKET)
    tcp, unix = (index for index, line in enumerate(socket) if line.startswith("ListenStream="))
    if setup.control is not None:
        socket[unix] = f"ListenStream={specifiers_escaped(str(setup.control))}"
    if setup.address is None:
        del socket[tcp]
    else:
        host, port = setup.address
        socket[tcp] = f"ListenStream=[{host}]:{port}" if ":" in host else f"ListenStream={host}:{port}"
    return [File(name, "\n".join([MARK, *lines]) + "\n") for name, lines in ((SERVICE, service), (SOCKET, socket))]


def launchd_file(setup: Setup, *, control: Path, folder: Path, log: Path) -> File:
    """The property list."""
    tree: dict[str, Any] = plistlib.loads(_text("launchd", f"{LABEL}.plist").encode())
    tree["ProgramArguments"] = list(setup.program)
    tree["Sockets"]["control"]["SockPathName"] = str(control)
    if setup.address is None:
        del tree["Sockets"]["http"]
    else:
        host, port = setup.address
        family = "IPv6" if ":" in host else "IPv4"
        tree["Sockets"]["http"] |= {"SockNodeName": host, "SockServiceName": str(port), "SockFamily": family}
    tree["WorkingDirectory"] = str(folder)
    tree["StandardErrorPath"] = tree["StandardOutPath"] = str(log)
    if setup.environment:
        tree["EnvironmentVariables"] = dict(setup.environment)
    return File(f"{LABEL}.plist", plistlib.dumps(tree, sort_keys=False).decode())


def quoted(word: str) -> str:
    """One word, as systemd.syntax(7) reads it: whatever is in it stays as it is."""
    escaped = specifiers_escaped(word).replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t")
    plain = escaped and all(sign.isalnum() or sign in "/._-=+:,@%" for sign in escaped)
    return escaped if plain else f'"{escaped}"'


def specifiers_escaped(text: str) -> str:
    return text.replace("%", "%%")


def _put(lines: list[str], key: str, value: str) -> None:
    place = next(index for index, line in enumerate(lines) if line.startswith(key))
    lines[place] = key + value


def _lines(kind: str, name: str) -> list[str]:
    return _text(kind, name).splitlines()


def _text(kind: str, name: str) -> str:
    return files("llmctl").joinpath("units", kind, name).read_text(encoding="utf-8")
