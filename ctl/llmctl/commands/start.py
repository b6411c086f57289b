"""`llmctl start` and `stop`: the daemon in the background, without a service manager."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from llmctl import limits
from llmctl.client import decode
from llmctl.commands.daemon import await_end
from llmctl.errors import DONE, CtlError, NotRunning, TimedOut
from llmctl.session import Session
from llmvisor.control.api import DaemonStatus
from llmvisor.control.paths import data_dir

_OWN_TO_ONE = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
"""Variables of a service manager that started whoever calls us: not meant for the daemon."""


class _Started(msgspec.Struct):
    pid: int
    address: str
    log: str | None
    started: bool
    """False = it ran already."""


def start(session: Session) -> int:
    """Start the daemon in the background, and wait until it is ready."""
    log = data_dir(os.environ) / "logs" / "console.log"
    limit = session.client.timeout_seconds or limits.start_seconds_max
    began = time.monotonic()
    with _turn(log.parent, ends_at=began + limit):
        if (status := _running(session)) is not None:
            return _tell(session, status, None)
        process = _spawn(session, log)
        while (status := _running(session)) is None:
            if process.poll() is not None:
                reason = f"llmvisor ended with exit code {process.returncode}{_last_words(log)}"
                raise CtlError(reason, hint=f"see {log}")
            if time.monotonic() - began > limit:
                raise TimedOut(f"llmvisor (pid {process.pid}) is not ready after {limit:g} s", hint=f"see {log}")
            time.sleep(limits.poll_seconds)
    return _tell(session, status, log)


def stop(session: Session) -> int:
    """Let running requests end, then stop; returns when the daemon is gone."""
    status = decode(session.client.get("/llm/status"), DaemonStatus)
    answer = session.client.post("/shutdown")
    await_end(session, status.pid)
    if session.json:
        session.out.json(answer)
    else:
        session.out.line(f"llmvisor (pid {status.pid}) has stopped")
    return DONE


@contextlib.contextmanager
def _turn(folder: Path, *, ends_at: float) -> Generator[None]:
    """One at a time: whoever starts it meanwhile finds it running, and the log is that of the daemon that runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CtlError(f"llmvisor has no place for its log: {error}") from None
    try:
        while not _taken(fd):
            if time.monotonic() > ends_at:
                raise TimedOut("somebody else starts llmvisor, and it is not ready yet", hint="llmctl status")
            time.sleep(limits.poll_seconds)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(session: Session) -> DaemonStatus | None:
    try:
        status = decode(session.client.get("/llm/status"), DaemonStatus)
    except NotRunning:
        return None
    # Before it is bound everywhere it tells no address.
    return status if status.address else None


def _spawn(session: Session, log: Path) -> subprocess.Popen[bytes]:
    given = [word for word in session.args.option if word != "--"]
    if getattr(session.args, "socket", None) is not None:
        given += ["--socket", str(session.client.socket_path)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_TO_ONE)}
    try:
        with log.open("wb") as console:
            # A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "llmvisor", *given],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environ,
                start_new_session=True,
            )
    except OSError as error:
        raise CtlError(f"llmvisor cannot be started: {error}") from None


def _last_words(log: Path) -> str:
    try:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return ":\n  " + "\n  ".join(said[-limits.last_words_lines_max :]) if said else ""


def _tell(session: Session, status: DaemonStatus, log: Path | None) -> int:
    if session.json:
        started = _Started(status.pid, status.address, None if log is None else str(log), log is not None)
        session.out.json(msgspec.json.encode(started))
        return DONE
    state = "runs already" if log is None else "runs"
    session.out.line(f"llmvisor (pid {status.pid}) {state} on {status.address}")
    return DONE
