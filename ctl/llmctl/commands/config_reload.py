"""`llmctl config reload`: have the daemon read its configuration now, and tell what came of it."""

from __future__ import annotations

import os
import time
from typing import cast

from llmctl import limits
from llmctl.client import decode
from llmctl.errors import DONE, FAILED, NotRunning, TimedOut
from llmctl.session import Session
from llmctl.terminal import printable
from llmvisor.control.api import ConfigStatus, DaemonStatus, ReloadReport


def config_reload(session: Session) -> int:
    """Reload; with `--wait` until every model is as it is configured. Raises `CtlError` where it could not be done."""
    body = ask_reload(session)
    report = decode(body, ReloadReport)
    if session.json:
        session.out.json(body)
    else:
        tell_report(session, report)
    if not cast("bool", session.args.wait):
        return DONE
    return _waited(session, report.models_replaced)


def ask_reload(session: Session) -> bytes:
    return session.client.post("/config/reload", timeout_seconds=limits.reload_seconds_max)


def tell_report(session: Session, report: ReloadReport) -> None:
    """What a reload did, for people."""
    session.out.line(printable(report.summary))
    for wait in report.waits:
        session.out.note(f"{printable(wait.path)} waits for a restart: {printable(wait.reason)}", "yellow")


def _waited(session: Session, replaced: list[str]) -> int:
    """Wait until no model is being replaced any more; whether all of these were."""
    bound = session.client.timeout_seconds or limits.reload_wait_seconds_max
    deadline = time.monotonic() + bound
    while (config := _config(session)).replacing:
        if time.monotonic() > deadline:
            names = ", ".join(map(printable, config.replacing))
            raise TimedOut(f"still loading after {bound:g} s: {names}")
        time.sleep(limits.poll_seconds)
    stayed = {name: reason for name, reason in config.stayed.items() if name in replaced}
    for name, reason in stayed.items():
        session.out.note(f"{printable(name)} stays as it was: {printable(reason)}", "red")
    return FAILED if stayed else DONE


def _config(session: Session) -> ConfigStatus:
    return decode(session.client.get("/llm/status"), DaemonStatus).config


def reload_after_change(session: Session, file: str) -> ReloadReport | None:
    """Have a changed file applied, where a daemon runs with it; None where none does. Raises `CtlError`."""
    try:
        named = decode(session.client.get("/llm/status"), DaemonStatus).config_file
    except NotRunning:
        return None
    if named is None or os.path.realpath(named) != file:
        return None
    return decode(ask_reload(session), ReloadReport)
