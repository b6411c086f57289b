"""`llmctl config set`: one value in the configuration file, checked before it is written, written all at once."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from llmctl.client import decode, decode_list
from llmctl.commands.config import ask_program
from llmctl.commands.config_reload import reload_after_change, tell_report
from llmctl.errors import DONE, CtlError, NotRunning, UsageError
from llmctl.session import Session
from llmctl.terminal import printable
from llmctl.yaml_edit import Edit, EditError, set_value, split_key
from llmvisor.control.api import ConfigCheckAnswer, ConfigValue, DaemonStatus

_OVERRIDING = ("dotenv", "environment", "flag")
_SECRET = re.compile(
    r"\b(env|options)\b.*(api_?key|token|secret|password|passwd|credential)[^:\s]*\s*:", re.IGNORECASE | re.DOTALL
)
"""The name of a secret before its value, in the places where the daemon looks for them too."""


class _Check(msgspec.Struct):
    """What `POST /config/check` is asked."""

    text: str
    name: str


class _Changed(msgspec.Struct):
    """What `config set --json` prints."""

    file: str
    key: str
    value: str
    before: str | None
    overridden_by: str | None
    applied: str | None
    """What the daemon did with it; None where it runs without this file, or not at all."""


def config_set(session: Session) -> int:
    """Change one value. Raises `UsageError` for a key that is none, `CtlError` with every problem of the result."""
    file = _file(session)
    before = _read(file)
    edit = _edited(session, file, before)
    _write(file, edit.text, unchanged_since=before)
    key = ".".join(edit.path)
    over = _overridden_by(session, edit)
    value = _shown(key, cast("str", session.args.value))
    was = None if edit.before is None else _shown(key, edit.before)
    report = reload_after_change(session, _text(file))
    if session.json:
        applied = None if report is None else report.summary
        session.out.json(msgspec.json.encode(_Changed(_text(file), key, value, was, over, applied)))
        return DONE
    session.out.line(f"{key} is {value} in {file}" + ("" if was is None else f" (it was {was})"))
    if over is not None:
        session.out.note(f"{over} says something else, and wins", "yellow")
    if report is None:
        session.out.note("it takes effect when llmvisor is started with this file")
    else:
        tell_report(session, report)
    return DONE


def _shown(key: str, value: str) -> str:
    """A value as it may appear on a screen, and in the log of whatever runs llmctl."""
    return "****" if _SECRET.search(f"{key}: {value}") else value


def _file(session: Session) -> Path:
    """`--file`, the daemon's, or the one that a start would take; links followed, so that they stay links."""
    named = cast("str | None", session.args.file)
    if named is None:
        try:
            named = decode(session.client.get("/llm/status"), DaemonStatus).config_file
        except NotRunning:
            named = None
    if named is None:
        found = ask_program(["path"])
        if found.returncode:
            raise CtlError("there is no configuration file", hint="write a first one with: llmctl config init")
        named = os.fsdecode(found.stdout.strip())
    return Path(os.path.realpath(os.path.expanduser(named)))


def _edited(session: Session, file: Path, text: str) -> Edit:
    """The changed text, as it is typed or, where only that is right, as a quoted text (`0660`, `1e3`)."""
    value = cast("str", session.args.value)
    try:
        parts = split_key(cast("str", session.args.key))
    except EditError as error:
        raise UsageError(str(error)) from None
    try:
        edit = set_value(text, parts, value)
        if not (problems := _problems(session, file, edit.text)):
            return edit
        quoted = set_value(text, parts, value, quoted=True)
    except EditError as error:
        raise CtlError(f"{file}: {error}") from None
    if not _problems(session, file, quoted.text):
        return quoted
    raise CtlError("nothing is changed: " + "\n  ".join(printable(problem) for problem in problems))


def _problems(session: Session, file: Path, text: str) -> list[str]:
    """What the daemon finds wrong with it; without a daemon, what its program does."""
    try:
        return decode(session.client.post("/config/check", _Check(text, _text(file))), ConfigCheckAnswer).problems
    except NotRunning:
        return _beside(file, text, lambda path: _checked_by_program(path, file.name))


def _checked_by_program(path: Path, name: str) -> list[str]:
    ended = ask_program(["check", str(path)])
    said = ended.stderr.decode(errors="replace")
    lines = [line.replace(_text(path), name).replace(_text(Path(path.name)), name) for line in said.splitlines()]
    return [line for line in lines if line.strip()] if ended.returncode else []


def _text(path: Path) -> str:
    """A path for people and programs to read; its name on the disk need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def _read(file: Path) -> str:
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read()
    except FileNotFoundError:
        raise CtlError(f"there is no {file}", hint="write a first one with: llmctl config init") from None
    except UnicodeDecodeError:
        raise CtlError(f"{file} is not UTF-8") from None
    except OSError as error:
        raise CtlError(f"{file} cannot be read: {error.strerror}") from None


def _write(file: Path, text: str, *, unchanged_since: str) -> None:
    """All at once: whoever reads it sees the old file or the new one, after a power cut too."""

    def replace(path: Path) -> list[str]:
        if _read(file) != unchanged_since:
            raise CtlError(f"{file} has changed in the meantime", hint="try again")
        os.replace(path, file)
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return []

    _beside(file, text, replace)


def _beside(file: Path, text: str, use: Callable[[Path], list[str]]) -> list[str]:
    """Use a file with that text in the same folder, of the same owner and mode. Raises `CtlError`."""
    path = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".yaml", dir=file.parent)
        path = Path(name)
        with open(descriptor, "w", encoding="utf-8", newline="") as opened:
            status = file.stat()
            if (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()) and os.getuid() == 0:
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        return use(path)
    except OSError as error:
        raise CtlError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _overridden_by(session: Session, edit: Edit) -> str | None:
    """Who else sets this value, in a layer above the file: `PORT in the environment`."""
    try:
        values = decode_list(session.client.get("/config"), ConfigValue)
    except CtlError:
        return None
    found = next((value for value in values if value.path == ".".join(edit.path)), None)
    if found is None or found.layer not in _OVERRIDING:
        return None
    return f"{printable(found.origin)} ({found.layer})"
