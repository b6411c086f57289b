"""`llmctl service`: llmvisor under systemd or launchd."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import cast

import msgspec

from llmctl import limits
from llmctl.errors import DONE, CtlError, NotFound, NotRunning
from llmctl.service_files import CARRIED, MARK, PROGRAM_SIGNS_REFUSED, File, Setup, socket_address
from llmctl.service_managers import Command, Manager, UnitStatus, manager_here, ran_well
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.terminal import Style, printable
from llmvisor.control.api import ConfigValue, ListAnswer
from llmvisor.control.paths import data_dir, home

_COLUMNS = (Column("UNIT"), Column("STATE"), Column("PID", right=True), Column("ENABLED"), Column("", fold=True))
_PLIST_MARK = "<string>org.llmvisor</string>"
_PRIVATE_PLACES = ("/home", "/root", "/run/user")
"""What a service of the machine does not see (`ProtectHome=yes`)."""


class _Done(msgspec.Struct):
    action: str
    files: list[str]
    commands: list[list[str]]


def service(session: Session) -> int:
    """Install, uninstall, start, stop or status."""
    user = bool(session.args.user)
    manager = manager_here(os.environ, home=home(os.environ), data=data_dir(os.environ), user=user)
    match cast("str", session.args.action):
        case "install":
            return _install(session, manager, user=user)
        case "uninstall":
            return _uninstall(session, manager)
        case "start":
            return _carry_out(session, "start", manager.start())
        case "stop":
            return _carry_out(session, "stop", manager.stop())
        case _:
            return _status(session, manager)


def _install(session: Session, manager: Manager, *, user: bool) -> int:
    files = manager.files(_setup(session.args.program, user=user))
    changed = [file.name for file in files if _is_changed(manager.folder / file.name, file.text)]
    commands = manager.after_install(changed=changed)
    if session.args.dry_run:
        return _dry_run(session, manager.folder, files, commands)
    for file in files:
        _write(manager.folder / file.name, file.text)
    if user:
        data_dir(os.environ).mkdir(parents=True, exist_ok=True)
    return _carry_out(session, "install", commands, files=[str(manager.folder / file.name) for file in files])


def _uninstall(session: Session, manager: Manager) -> int:
    paths = [path for name in manager.names() if (path := manager.folder / name).exists()]
    if not paths:
        raise NotFound("llmvisor is not installed as a service here", hint=f"nothing of ours is in {manager.folder}")
    for path in paths:
        if not _is_ours(path):
            raise CtlError(f"{path} was not written by llmctl", hint="remove it yourself, if you want that")
    before, after = manager.before_uninstall(), manager.after_uninstall()
    if session.args.dry_run:
        return _carry_out(session, "uninstall", [*before, *(["rm", str(path)] for path in paths), *after])
    for command in before:
        ran_well(command)
    for path in paths:
        with _told(path):
            path.unlink(missing_ok=True)
    return _carry_out(session, "uninstall", after, files=[str(path) for path in paths])


def _status(session: Session, manager: Manager) -> int:
    units = manager.status()
    if session.json:
        session.out.json(msgspec.json.encode(ListAnswer([msgspec.Raw(msgspec.json.encode(unit)) for unit in units])))
    else:
        rows = [
            [unit.name, Cell(unit.state, _style(unit)), str(unit.pid or ""), unit.enabled, printable(unit.text)]
            for unit in units
        ]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
    # A service that waits for its first client is as good as one that runs.
    return DONE if any(unit.state.startswith(("active", "running")) for unit in units) else NotRunning.exit_code


def _style(unit: UnitStatus) -> Style:
    if unit.state.startswith(("active", "running")):
        return "green"
    return "red" if unit.state.startswith("failed") else ""


def _carry_out(session: Session, action: str, commands: list[Command], *, files: list[str] | None = None) -> int:
    if not session.args.dry_run:
        for command in commands:
            ran_well(command)
    if session.json:
        session.out.json(msgspec.json.encode(_Done(action, files or [], commands)))
    else:
        session.out.lines([f"{'removed' if action == 'uninstall' else 'wrote'} {path}" for path in files or []])
        session.out.lines([shlex.join(command) for command in commands])
    return DONE


def _dry_run(session: Session, folder: Path, files: list[File], commands: list[Command]) -> int:
    if session.json:
        return _carry_out(session, "install", commands, files=[str(folder / file.name) for file in files])
    for file in files:
        session.out.lines([f"# {folder / file.name}", *file.text.splitlines(), ""])
    session.out.lines([shlex.join(command) for command in commands])
    return DONE


# ------------------------------------------------------------------------------------------------- what goes in


def _setup(given: str | None, *, user: bool) -> Setup:
    program = [os.path.abspath(given)] if given else [sys.executable, "-P", "-m", "llmvisor"]
    _check_program(Path(program[0]), user=user)
    environment = {name: os.environ[name] for name in CARRIED if user and os.environ.get(name)}
    values = _configured(user=user, environment=environment)
    host, port = values.get("server.host"), values.get("server.port")
    address = socket_address(host, port) if isinstance(host, str) and isinstance(port, int) else None
    control = values.get("control.socket") if user else None
    return Setup(
        program=program,
        address=address,
        control=Path(control) if isinstance(control, str) else None,
        folder=data_dir(os.environ) if user else None,
        environment=environment,
    )


def _check_program(program: Path, *, user: bool) -> None:
    """Raises `CtlError` where systemd starts no such program, or a service of the machine does not see it."""
    if PROGRAM_SIGNS_REFUSED & set(str(program)):
        raise CtlError(f"systemd starts no program with quotes or backslashes in its path: {program}")
    for place in (program, program.resolve()):
        if not user and any(place.is_relative_to(private) for private in _PRIVATE_PLACES):
            raise CtlError(
                f"llmvisor is installed in {place.parent}, which a service of the machine does not see",
                hint="install it elsewhere (python3 -m venv /opt/llmvisor), or take: llmctl service install --user",
            )


def _configured(*, user: bool, environment: dict[str, str]) -> dict[str, object]:
    """What the service's own configuration will say, by path; the defaults are left to the files' own."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "XDG_RUNTIME_DIR") if user and name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-X", "utf8", "-P", "-m", "llmvisor", "config", "show", "--json"],
        check=False,
        capture_output=True,
        cwd="/",
        env={"HOME": "/", **kept, **environment},
        timeout=limits.probe_seconds_max,
    )
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip()
        raise CtlError(f"the configuration cannot be used: {said}", hint="llmctl config check tells every mistake")
    values = msgspec.json.decode(ran.stdout, type=list[ConfigValue])
    found = {value.path: msgspec.json.decode(bytes(value.value)) for value in values}
    if next(value.layer for value in values if value.path == "control.socket") == "default":
        del found["control.socket"]
    return found


# ------------------------------------------------------------------------------------------------- files


def _write(path: Path, text: str) -> None:
    if path.exists() and not _is_ours(path):
        raise CtlError(f"{path} was not written by llmctl", hint="move it away first")
    partial = path.with_name(f".{path.name}.partial")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o644)
        partial.replace(path)


def _is_changed(path: Path, text: str) -> bool:
    with _told(path):
        return path.exists() and path.read_text(encoding="utf-8", errors="replace") != text


def _is_ours(path: Path) -> bool:
    with _told(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    return text.startswith(MARK) or _PLIST_MARK in text


@contextlib.contextmanager
def _told(path: Path) -> Generator[None]:
    """What the system says of a file, as a command's error."""
    try:
        yield
    except OSError as error:
        root = "run it as root (sudo), or for yourself alone: llmctl service install --user"
        hint = root if isinstance(error, PermissionError) else None
        raise CtlError(f"{path}: {error.strerror or error}", hint=hint) from None
