"""`llmctl jobs`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import msgspec

from llmctl import render
from llmctl.client import decode, decode_list, segment
from llmctl.errors import DONE, FAILED, NotFound, UsageError
from llmctl.follow import follow_job, job_result
from llmctl.session import Session
from llmctl.status_view import job_subject, jobs_table, pair_lines
from llmctl.times import local_time
from llmctl.watch_jobs import attempt, watch_jobs
from llmvisor.control.api import Job, ListAnswer

_ID_PREFIX = "job_"


def jobs(session: Session) -> int:
    """List the jobs; or show, watch, cancel or forget some."""
    action = cast("str", session.args.action)
    ids = list(dict.fromkeys(cast("list[str]", session.args.id)))
    if action in {"show", "cancel", "forget"} and not ids:
        raise UsageError(f"jobs {action} needs an ID", hint="see: llmctl jobs")
    if action in {"list", "prune"} and ids:
        raise UsageError(f"jobs {action} takes no ID", hint=f"perhaps: llmctl jobs show {ids[0]}")
    actions: dict[str, Callable[[Session, list[str]], int]] = {
        "list": _list,
        "show": _show,
        "watch": _watch,
        "cancel": _cancel,
        "forget": _forget,
        "prune": _prune,
    }
    return actions[action](session, [_whole_id(session, id) for id in ids])


def _whole_id(session: Session, text: str) -> str:
    """The id of the one job whose id ends so: tables show no more of it. Raises `UsageError` for several."""
    if text.startswith(_ID_PREFIX):
        return text
    known = [job.id for job in _jobs(session, {})]
    found = [id for id in known if id.endswith(text)]
    if len(found) > 1:
        raise UsageError(f"{text} could be {' or '.join(found[:3])}", hint="give more of it")
    return found[0] if found else text


def _list(session: Session, ids: list[str]) -> int:
    del ids
    args = session.args
    query = cast("dict[str, str | None]", {"state": args.state, "type": args.type, "model": args.model})
    body = session.client.get_list("/jobs", query)
    found = decode_list(body, Job)
    if session.json:
        session.out.json(body)
    elif found:
        session.out.lines(jobs_table(found, width=session.out.width, paint=session.out.paint))
    else:
        session.out.note("no such jobs" if any(query.values()) else "no jobs yet")
    return DONE


def _show(session: Session, ids: list[str]) -> int:
    return _print(session, [decode(session.client.get(f"/jobs/{segment(id)}"), Job) for id in ids])


def _cancel(session: Session, ids: list[str]) -> int:
    told: list[Job] = []

    def cancel(path: str) -> None:
        told.append(decode(session.client.post(f"{path}/cancel"), Job))

    if len(ids) == 1:
        cancel(f"/jobs/{segment(ids[0])}")
        return _print(session, told)
    done = [attempt(session, id, cancel, "is cancelled") for id in ids]
    if session.json:
        session.out.json(_list_answer(told))
    return DONE if all(done) else FAILED


def _forget(session: Session, ids: list[str]) -> int:
    if len(ids) == 1:
        session.client.delete(f"/jobs/{segment(ids[0])}")
        return DONE
    done = [attempt(session, id, session.client.delete, "is forgotten") for id in ids]
    return DONE if all(done) else FAILED


def _prune(session: Session, ids: list[str]) -> int:
    """Forget every job that has ended; of those alone that fit the filters."""
    del ids
    args = session.args
    query = cast("dict[str, str | None]", {"state": args.state, "type": args.type, "model": args.model})
    ended: dict[str, Job] = {}
    # The list has a bound, and no pages: once those that it shows are gone it shows the next.
    while found := [job for job in _jobs(session, query) if job.ended_at is not None and job.id not in ended]:
        for job in found:
            with suppress(NotFound):  # somebody else has forgotten it
                session.client.delete(f"/jobs/{segment(job.id)}")
            ended[job.id] = job
    if session.json:
        session.out.json(_list_answer(list(ended.values())))
    else:
        session.out.line(f"{len(ended)} job{'' if len(ended) == 1 else 's'} forgotten")
    return DONE


def _jobs(session: Session, query: dict[str, str | None]) -> list[Job]:
    return decode_list(session.client.get_list("/jobs", query), Job)


def _watch(session: Session, ids: list[str]) -> int:
    cancel = bool(session.args.cancel_on_interrupt)
    found = [decode(session.client.get(f"/jobs/{segment(id)}"), Job) for id in ids]
    if len(found) != 1:
        return watch_jobs(session, found or None, cancel_on_interrupt=cancel)
    label = f"{found[0].type} {job_subject(found[0])}"
    job = follow_job(session, found[0], label=label, cancel_on_interrupt=cancel)
    _print(session, [job])
    return job_result(job)


def _print(session: Session, found: list[Job]) -> int:
    if session.json:
        session.out.json(msgspec.json.encode(found[0]) if len(found) == 1 else _list_answer(found))
        return DONE
    for place, job in enumerate(found):
        session.out.lines(([""] if place else []) + pair_lines(_pairs(job)))
    return DONE


def _pairs(job: Job) -> list[tuple[str, str]]:
    amount = render.part(job.done, job.total, job.unit) if job.total else ""
    params = job.params
    return [
        ("job", job.id),
        ("type", job.type + (" (restart)" if params.restart else " (rollback)" if params.rollback else "")),
        ("model", params.model),
        ("source", params.source or params.path or ""),
        ("state", job.state),
        ("done", f"{100 * job.progress:.0f}%  {job.stage}  {amount}".rstrip()),
        ("tries", str(job.attempts) if job.attempts > 1 else ""),
        ("next try", local_time(job.retry_at) if job.retry_at else ""),
        ("created", local_time(job.created_at)),
        ("started", local_time(job.started_at) if job.started_at else ""),
        ("ended", local_time(job.ended_at) if job.ended_at else ""),
        ("result", job.result or ""),
        ("error", job.error or ""),
        ("hint", job.hint or ""),
    ]


def _list_answer(found: list[Job]) -> bytes:
    return msgspec.json.encode(ListAnswer([msgspec.Raw(msgspec.json.encode(job)) for job in found]))
