"""`llmctl status`."""

from __future__ import annotations

from typing import cast

from llmctl.client import decode, segment
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.status_view import daemon_view, runtime_view
from llmvisor.control.api import DaemonStatus, RuntimeStatus


def status(session: Session) -> int:
    """The daemon and its models, or one model in full."""
    if session.args.watch:
        from llmctl.watch import watch  # noqa: PLC0415 - threads and rich, for this alone

        return watch(session, cast("str | None", session.args.model))
    if session.json:
        return _json(session)
    session.out.lines(status_lines(session))
    return DONE


def status_lines(session: Session) -> list[str]:
    """What is to be shown, asked for anew. Raises `CtlError`."""
    width, paint = session.out.width, session.out.paint
    if model := cast("str | None", session.args.model):
        return runtime_view(decode(_ask(session, model), RuntimeStatus), width=width, paint=paint)
    return daemon_view(decode(_ask(session, None), DaemonStatus), width=width, paint=paint)


def status_json(session: Session) -> bytes:
    """The same as the API answers it."""
    return _ask(session, cast("str | None", session.args.model))


def _json(session: Session) -> int:
    body = status_json(session)
    decode(body, RuntimeStatus if session.args.model else DaemonStatus)
    session.out.json(body)
    return DONE


def _ask(session: Session, model: str | None) -> bytes:
    return session.client.get(f"/llm/runtimes/{segment(model)}" if model else "/llm/status")
