"""`llmctl logs` and `events`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import msgspec

from llmctl import render
from llmctl.client import decode
from llmctl.errors import DONE, CtlError
from llmctl.session import Session
from llmctl.sse import ServerSentEvent
from llmctl.status_view import STATE_STYLES, job_subject, model_id
from llmctl.terminal import Style, Terminal, printable
from llmctl.times import clock_time
from llmvisor.control.api import DaemonStatus, ErrorAnswer, Event, ListAnswer, LogRecord

_LEVEL_STYLES: dict[str, Style] = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "red"}


def logs(session: Session) -> int:
    """What was logged of late, and with `-f` what comes. As JSON: one object a line."""
    args = session.args
    query = cast("dict[str, str | None]", {"model": args.model, "level": args.level})
    if not args.follow:
        for item in decode(session.client.get("/logs", query), ListAnswer).data:
            _log_line(session, bytes(item))
        return DONE
    for event in _followed(session, "/logs", {**query, "follow": "true"}):
        _log_line(session, _data(event))
    raise CtlError("the daemon ended the stream: it is stopping")


def events(session: Session) -> int:
    """Every change of state, as it happens. As JSON: one object a line."""
    for item in _followed(session, "/events", {}):
        data = _data(item)
        event = decode(data, Event)
        if session.json:
            session.out.json_line(data)
        else:
            session.out.line(event_text(event, session.out))
            session.out.stdout.flush()
    raise CtlError("the daemon ended the stream: it is stopping")


def _followed(session: Session, path: str, query: Mapping[str, str | None]) -> Iterator[ServerSentEvent]:
    """What a stream tells until the daemon stops. One that an upgrade has ended is taken up again."""
    while True:
        with session.client.stream("GET", path, query=dict(query)) as stream:
            yield from stream
        if not _was_upgraded(session):
            return


def _was_upgraded(session: Session) -> bool:
    """Whether the daemon goes on, and has tried to be upgraded since it was started."""
    try:
        status = decode(session.client.get("/llm/status"), DaemonStatus)
    except CtlError:
        return False
    return status.health != "unhealthy" and status.upgrade.attempts > 0


def event_text(event: Event, out: Terminal) -> str:
    """One change on one line."""
    parts = [out.paint(clock_time(event.time), "dim"), f"{event.kind:<7}"]
    if event.runtime is not None:
        state = render.state(event.runtime.state)
        parts += [model_id(event.runtime), out.paint(state, STATE_STYLES.get(event.runtime.state, ""))]
        parts += [event.runtime.error] if event.runtime.error else []
    if event.job is not None:
        job = event.job
        parts += [job.id, job.type, job_subject(job), job.state, f"{100 * job.progress:.0f}%"]
        parts += [job.error] if job.error else []
    if event.message:
        parts.append(event.message)
    return "  ".join(parts)


def log_text(record: LogRecord, out: Terminal) -> str:
    """One line of the log: the time of day on a terminal, the whole moment in a pipe."""
    moment = clock_time(record.time) if out.interactive else record.time
    message = "\n    ".join(printable(part) for part in record.message.splitlines()) or ""
    fields = "".join(f" {name}={printable(value)}" for name, value in record.fields.items())
    request = out.paint(f" request_id={printable(record.request_id)}", "dim") if record.request_id else ""
    module = record.module.removeprefix("llmvisor.") if out.interactive else record.module
    source = f"{module}[{record.model}]" if record.model else module
    level = out.paint(f"{record.level:<8}", _LEVEL_STYLES.get(record.level, ""))
    return f"{out.paint(moment, 'dim')} {level} {out.paint(printable(source), 'cyan')} {message}{fields}{request}"


def _log_line(session: Session, data: bytes) -> None:
    record = decode(data, LogRecord)
    if session.json:
        session.out.json_line(data)
    else:
        session.out.line(log_text(record, session.out))
        session.out.stdout.flush()


def _data(event: ServerSentEvent) -> bytes:
    if event.kind != "error":
        return event.data
    try:
        raise CtlError(msgspec.json.decode(event.data, type=ErrorAnswer).error.message)
    except msgspec.DecodeError:
        raise CtlError("the daemon broke the stream off") from None
