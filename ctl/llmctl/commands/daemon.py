"""`llmctl health`, `port`, `restart-daemon` and `shutdown`."""

from __future__ import annotations

import os
import time
from urllib.parse import urlsplit

import msgspec

from llmctl import limits
from llmctl.client import decode
from llmctl.errors import DONE, FAILED, CtlError, NotRunning, TimedOut
from llmctl.session import Session
from llmctl.terminal import Style, printable
from llmvisor.control.api import DaemonStatus, HealthAnswer, UpgradeRequest, UpgradeStatus

_STYLES: dict[str, Style] = {"healthy": "green", "degraded": "yellow"}


def health(session: Session) -> int:
    """Whether the daemon is well; exit code 1 when it is unhealthy."""
    body = session.client.get("/health", accept=(503,))
    answer = decode(body, HealthAnswer)
    if session.json:
        session.out.json(body)
    else:
        session.out.line(session.out.paint(printable(answer.status), _STYLES.get(answer.status, "red")))
        session.out.lines([f"  {printable(reason)}" for reason in answer.reasons])
    return FAILED if answer.status == "unhealthy" else DONE


def port(session: Session) -> int:
    """The TCP port that the daemon is bound to."""
    address = decode(session.client.get("/llm/status"), DaemonStatus).address
    try:
        number = urlsplit(address).port
    except ValueError:
        number = None
    if number is None:
        raise CtlError("the daemon is bound to no port at the moment", hint="see: llmctl status")
    if session.json:
        session.out.json(msgspec.json.encode({"port": number, "address": address}))
    else:
        session.out.line(str(number))
    return DONE


def shutdown(session: Session) -> int:
    """Drain and stop the daemon; with `--wait` until it is gone."""
    status = decode(session.client.get("/llm/status"), DaemonStatus)
    answer = session.client.post("/shutdown")
    if session.args.wait:
        await_end(session, status.pid)
    if session.json:
        session.out.json(answer)
    else:
        session.out.line(f"llmvisor (pid {status.pid}) {'has stopped' if session.args.wait else 'is stopping'}")
    return DONE


def restart_daemon(session: Session) -> int:
    """Upgrade the daemon in place, and wait until the new program serves. Raises `TimedOut` after `--timeout`."""
    asked = UpgradeRequest(session.args.within, session.args.force)
    began = decode(session.client.post("/restart", asked), UpgradeStatus)
    status = _await_upgrade(session, began) if session.args.wait else began
    if session.json:
        session.out.json(msgspec.json.encode(status))
    elif not session.args.wait:
        session.out.line("llmvisor is trying its new program: see llmctl status")
    elif status.completed > began.completed:
        session.out.line("llmvisor runs its program anew; the models stayed loaded")
    else:
        # A new program that was left nothing counts from nothing.
        anew = status.attempts < began.attempts
        what = "runs its new program, and loads the models anew" if anew else "goes on with its old program"
        reason = printable(status.reason or "no reason was told")
        raise CtlError(f"llmvisor {what}: {reason}", hint="see: llmctl logs")
    return DONE if status.completed > began.completed or not session.args.wait else FAILED


def _await_upgrade(session: Session, began: UpgradeStatus) -> UpgradeStatus:
    """How the upgrade ended. What it waits for is shown meanwhile. Raises `TimedOut`."""
    asked_at, told = time.monotonic(), None
    while True:
        status = decode(session.client.get("/llm/status"), DaemonStatus).upgrade
        over = status.completed > began.completed or status.attempts != began.attempts
        if over or status.state in {"none", "failed"}:
            return status
        if status.reason != told and status.reason is not None:
            session.out.note(f"waiting: {printable(status.reason)}")
        told = status.reason
        limit = session.client.timeout_seconds
        if limit is not None and time.monotonic() - asked_at > limit:
            raise TimedOut(f"the upgrade is not done after {limit:g} s", hint="it goes on: see llmctl status")
        time.sleep(limits.poll_seconds)


def await_end(session: Session, pid: int) -> None:
    """Until the process is gone, or nobody answers where it is not to be seen. Raises `TimedOut`.

    A socket that a service manager holds is not asked: that would start the next daemon.
    """
    began = time.monotonic()
    seen = _is_alive(pid)
    while _is_alive(pid) if seen else _answers(session):
        limit = session.client.timeout_seconds
        if limit is not None and time.monotonic() - began > limit:
            raise TimedOut(f"llmvisor (pid {pid}) still runs after {limit:g} s")
        time.sleep(limits.poll_seconds)


def _answers(session: Session) -> bool:
    try:
        session.client.get("/health", accept=(503,))
    except NotRunning:
        return False
    except CtlError:
        return True
    return True


def _is_alive(pid: int) -> bool:
    """Whether the process runs; a daemon in another PID namespace is not seen, and its socket decides."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False
