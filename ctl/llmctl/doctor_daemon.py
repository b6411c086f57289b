"""The doctor's checks of the daemon: its folder, socket, lock, port and port file."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from llmctl.client import decode
from llmctl.doctor import Finding, Place, run
from llmctl.errors import CtlError, NotRunning
from llmvisor.control.api import ConfigValue, DaemonStatus

LOCK_FILE = "daemon.lock"
PORT_FILE = ".port"
PORT_DEFAULT = 8000
_START = "llmctl start   (in the foreground: llmvisor)"

Values = Mapping[str, ConfigValue]
"""Configuration by path (`server.port`)."""


class Daemon(NamedTuple):
    """What the socket said."""

    state: Literal["alive", "absent", "stale", "wrong"]
    status: DaemonStatus | None
    text: str


def daemon_checks(place: Place) -> Iterator[Finding]:
    """From the folder up to the port."""
    path = place.client.socket_path
    daemon = ask(place)
    values, finding = configuration()
    yield finding
    if daemon.state == "absent":
        yield from socket_place(path, values)
    yield run_folder(path.parent)
    if path.exists():
        yield from socket_mode(path)
    yield socket_finding(path, daemon)
    yield from lock_finding(path.parent / LOCK_FILE, daemon)
    yield port_finding(daemon, values)
    yield from port_file_finding(Path(PORT_FILE), daemon)
    if daemon.status is not None:
        yield from health_findings(daemon.status)


def ask(place: Place) -> Daemon:
    """Whether somebody answers on the socket, and whether it is llmvisor."""
    try:
        status = decode(place.client.get("/llm/status"), DaemonStatus)
    except NotRunning as error:
        return Daemon("stale" if place.client.socket_path.exists() else "absent", None, error.message)
    except CtlError as error:
        return Daemon("wrong", None, error.message)
    return Daemon("alive", status, f"llmvisor {status.version}, pid {status.pid}")


def run_folder(folder: Path) -> Finding:
    """The socket's folder has to be ours alone."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return Finding("run folder", "ok", f"{folder} is made at the first start")
    except OSError as error:
        return Finding(
            "run folder", "problem", f"{folder}: {error.strerror}", "set XDG_RUNTIME_DIR to a folder of yours"
        )
    if not stat.S_ISDIR(status.st_mode):
        return Finding("run folder", "problem", f"{folder} is no folder", f"rm {folder}")
    if status.st_uid != os.geteuid():
        fix = "run llmctl and llmvisor as the same user, or set LLMVISOR_SOCKET"
        return Finding("run folder", "problem", f"{folder} belongs to uid {status.st_uid}", fix)
    return _folder_mode(folder, stat.S_IMODE(status.st_mode))


def _folder_mode(folder: Path, mode: int) -> Finding:
    if mode & 0o022:
        fix = "give the socket a folder of its own: control.socket in the configuration"
        return Finding("run folder", "problem", f"others may write to {folder} (mode {mode:04o})", fix)
    if mode & 0o077:
        return Finding("run folder", "problem", f"{folder} is open to others (mode {mode:04o})", f"chmod 700 {folder}")
    return Finding("run folder", "ok", f"{folder} (mode {mode:04o})")


def socket_mode(path: Path) -> Iterator[Finding]:
    """A problem where others than its user (and group) may use the socket."""
    status = path.lstat()
    if not stat.S_ISSOCK(status.st_mode):
        yield Finding("socket", "problem", f"{path} is no socket", f"move it away: mv {path} {path}.old")
    elif status.st_mode & 0o007:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding("socket", "problem", f"{path} is open to everybody (mode {mode:04o})", f"chmod 600 {path}")


def socket_finding(path: Path, daemon: Daemon) -> Finding:
    """Alive, not there, left over, or something else's."""
    if daemon.state == "alive":
        return Finding("daemon", "ok", f"{daemon.text}, answers on {path}")
    if daemon.state == "absent":
        return Finding("daemon", "note", f"not running; start it with: {_START}")
    if daemon.state == "stale":
        return Finding("daemon", "problem", f"{path} was left by a daemon that is gone", f"start it again: {_START}")
    return Finding("daemon", "problem", daemon.text, f"lsof {path} tells who has it")


def lock_finding(path: Path, daemon: Daemon) -> Iterator[Finding]:
    """A lock that is held while nobody answers: a daemon that hangs, or is starting."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Finding("lock", "problem", f"{path}: {error.strerror}", f"remove it: rm {path}")
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if daemon.state != "alive":
            text = f"{path} is held, but the daemon does not answer"
            yield Finding("lock", "problem", text, f"wait if it is starting; else kill its pid: fuser {path}")
        return
    finally:
        os.close(fd)
    if daemon.state == "alive":
        fix = "restart the daemon: llmctl shutdown --wait, then llmvisor"
        yield Finding("lock", "problem", f"{path} is not held by the running daemon", fix)


def port_finding(daemon: Daemon, values: Values) -> Finding:
    """The port that the daemon has, or that it would take."""
    if daemon.status is not None:
        address = daemon.status.address
        return Finding("port", "ok" if address else "note", address or "none is bound at the moment")
    port = configured_port(values)
    if port == 0:
        return Finding("port", "ok", "a free one is taken at the start")
    if is_port_free(port):
        return Finding("port", "ok", f"{port} is free")
    fix = "stop it, or take another: llmvisor --port auto"
    return Finding("port", "problem", f"{port} is taken by {holder_of(port)}", fix)


def configured_port(values: Values) -> int:
    """The port that a start would take; 0 = a free one."""
    try:
        port = int(bytes(values["server.port"].value))
    except (KeyError, ValueError):
        return PORT_DEFAULT
    return port if 0 <= port < 65536 else PORT_DEFAULT


def configuration() -> tuple[Values, Finding]:
    """What the daemon's own program makes of the configuration here: values as JSON, and whether it can be used."""
    ran = run([sys.executable, "-m", "llmvisor", "config", "show", "--json"])
    if ran.code != 0:
        said = ran.stderr.strip() or "llmvisor config show fails and says nothing"
        return {}, Finding("configuration", "problem", said, "llmctl config check tells every mistake")
    try:
        values = msgspec.json.decode(ran.stdout, type=list[ConfigValue])
    except msgspec.DecodeError as fault:
        fix = "install llmvisor again: pip install --force-reinstall llmvisor"
        return {}, Finding("configuration", "problem", f"llmvisor config show makes no sense: {fault}", fix)
    files = sorted({value.origin.rpartition(":")[0] for value in values if value.layer == "file"})
    text = f"correct ({', '.join(files)})" if files else "the built-in defaults"
    return {value.path: value for value in values}, Finding("configuration", "ok", text)


def socket_place(path: Path, values: Values) -> Iterator[Finding]:
    """A problem where the configuration puts the socket elsewhere than llmctl looks."""
    configured = values.get("control.socket")
    if configured is None or configured.layer == "default":
        return
    text = bytes(configured.value).decode()
    if text in {"null", msgspec.json.encode(str(path)).decode()}:
        return
    fix = f"export LLMVISOR_SOCKET={text}"
    yield Finding("socket", "problem", f"the configuration puts it at {text}, llmctl looks at {path}", fix)


def is_port_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """Who listens on a port, as far as we may see."""
    import psutil  # noqa: PLC0415 - this check alone

    try:
        connections = psutil.net_connections(kind="tcp")
        pids = [c.pid for c in connections if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN]
        if pids and pids[0] is not None:
            return f"pid {pids[0]} ({psutil.Process(pids[0]).name()})"
    except (psutil.Error, OSError):
        pass
    return "another program"


def port_file_finding(path: Path, daemon: Daemon) -> Iterator[Finding]:
    """A `.port` in this folder that the running daemon did not write."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return
    port = None
    if daemon.status is not None and daemon.status.address:
        port = urlsplit(daemon.status.address).port
    if text == str(port):
        yield Finding("port file", "ok", f"{path.absolute()} says {text}")
    elif daemon.state == "alive":
        where = f"{path.absolute()} says {text or 'nothing'}, the daemon has {port or 'no port'}"
        yield Finding("port file", "problem", where, f"remove it, unless another daemon wrote it: rm {path.absolute()}")
    elif not text.isdigit() or not 0 < int(text) < 65536 or is_port_free(int(text)):
        where = f"{path.absolute()} was left by a daemon that is gone"
        yield Finding("port file", "problem", where, f"rm {path.absolute()}")


def health_findings(status: DaemonStatus) -> Iterator[Finding]:
    """What the daemon itself finds wrong."""
    if status.health == "healthy":
        yield Finding("health", "ok", "healthy")
    for reason in status.reasons or ([] if status.health == "healthy" else [status.health]):
        yield Finding("health", "problem", reason, "llmctl status and llmctl logs --level warning tell more")
    for runtime in status.runtimes:
        if runtime.state in {"loaded", "busy"} and runtime.sandbox is None:
            text = f"the worker of {runtime.model} runs without: `sandbox: off`"
            yield Finding("sandbox", "note", text, f"llmctl config set models.{runtime.model}.sandbox auto")
        if runtime.state in {"error", "unavailable"}:
            text = f"{runtime.model} is {runtime.state}: {runtime.error or 'no reason was given'}"
            yield Finding(
                "model",
                "problem",
                text,
                f"llmctl status {runtime.model} tells more; llmctl restart {runtime.model} tries again",
            )
