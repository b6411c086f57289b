"""`llmctl load`, `unload` and `restart`."""

from __future__ import annotations

from typing import cast

import msgspec

from llmctl import render
from llmctl.client import decode
from llmctl.errors import DONE
from llmctl.follow import follow_job, job_result
from llmctl.session import Session
from llmvisor.control.api import Job, JobParams, JobRequest


def load(session: Session) -> int:
    """Load a model, and wait until it can answer."""
    request = JobRequest(type="load", params=JobParams(model=_model(session)))
    return _submit(session, request, doing="loading", done="is loaded")


def unload(session: Session) -> int:
    """End a model's worker, once its requests are done unless forced."""
    params = JobParams(model=_model(session), force=bool(session.args.force))
    return _submit(session, JobRequest(type="unload", params=params), doing="unloading", done="is unloaded")


def restart(session: Session) -> int:
    """Replace a model's worker, and forget its earlier crashes."""
    request = JobRequest(type="load", params=JobParams(model=_model(session), restart=True))
    return _submit(session, request, doing="restarting", done="has a new worker")


def _submit(session: Session, request: JobRequest, *, doing: str, done: str) -> int:
    model = request.params.model
    job = decode(session.client.post("/jobs", request), Job)
    if session.args.wait:
        cancel = bool(session.args.cancel_on_interrupt)
        job = follow_job(session, job, label=f"{doing} {model}", cancel_on_interrupt=cancel)
    if session.json:
        session.out.json(msgspec.json.encode(job))
    elif not session.args.wait:
        session.out.line(job.id)
    if not session.args.wait:
        return DONE
    code = job_result(job)
    if not session.json:
        session.out.line(f"{model} {done}{_took(job)}")
    return code


def _took(job: Job) -> str:
    from datetime import datetime  # noqa: PLC0415 - for this one line

    if job.started_at is None or job.ended_at is None:
        return ""
    try:
        took = datetime.fromisoformat(job.ended_at) - datetime.fromisoformat(job.started_at)
    except (ValueError, TypeError):
        return ""
    return f" ({render.duration(took.total_seconds())})"


def _model(session: Session) -> str:
    return cast("str", session.args.model)
