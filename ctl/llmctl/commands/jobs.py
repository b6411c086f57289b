"""`llmctl jobs`."""

from __future__ import annotations

from typing import cast

import msgspec

from llmctl.client import decode, decode_list, segment
from llmctl.errors import DONE, UsageError
from llmctl.follow import follow_job, job_result
from llmctl.session import Session
from llmctl.status_view import jobs_table, local_time, pair_lines
from llmvisor.control.api import Job


def jobs(session: Session) -> int:
    """List the jobs, or show, watch or cancel one."""
    action = cast("str", session.args.action)
    job_id = cast("str | None", session.args.id)
    if action == "list":
        return _list(session)
    if not job_id:
        raise UsageError(f"jobs {action} needs an ID", hint="see: llmctl jobs")
    path = f"/jobs/{segment(job_id)}"
    if action == "cancel":
        return _print(session, decode(session.client.post(f"{path}/cancel"), Job))
    job = decode(session.client.get(path), Job)
    if action == "show":
        return _print(session, job)
    job = follow_job(session, job, label=f"{job.type} {job.params.model}", cancel_on_interrupt=False)
    _print(session, job)
    return job_result(job)


def _list(session: Session) -> int:
    body = session.client.get_list("/jobs", {})
    found = decode_list(body, Job)
    if session.json:
        session.out.json(body)
    elif found:
        session.out.lines(jobs_table(found, width=session.out.width, paint=session.out.paint))
    else:
        session.out.note("no jobs yet")
    return DONE


def _print(session: Session, job: Job) -> int:
    if session.json:
        session.out.json(msgspec.json.encode(job))
        return DONE
    pairs = [
        ("job", job.id),
        ("type", job.type + (" (restart)" if job.params.restart else "")),
        ("model", job.params.model),
        ("state", job.state),
        ("done", f"{100 * job.progress:.0f}%  {job.stage}".rstrip()),
        ("created", local_time(job.created_at)),
        ("started", local_time(job.started_at) if job.started_at else ""),
        ("ended", local_time(job.ended_at) if job.ended_at else ""),
        ("error", job.error or ""),
    ]
    session.out.lines(pair_lines(pairs))
    return DONE
