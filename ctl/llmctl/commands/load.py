"""`llmctl load`, `unload` and `restart`."""

from __future__ import annotations

from typing import cast

from llmctl.follow import run_job
from llmctl.session import Session
from llmvisor.control.api import JobParams, JobRequest


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
    return run_job(session, request, doing=f"{doing} {model}", done=lambda _: f"{model} {done}")


def _model(session: Session) -> str:
    return cast("str", session.args.model)
