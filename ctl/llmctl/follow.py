"""Follows a job to its end."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.client import Client, decode, segment
from llmctl.errors import DONE, CtlError, NotFound, TimedOut
from llmctl.progress import job_display
from llmctl.session import Session
from llmctl.sse import ServerSentEvent
from llmctl.terminal import printable
from llmvisor.control.api import ErrorAnswer, Job, JobParams, JobRequest, ModelStatus

_STATUS_NOT_FOUND = ("model_not_found", "tier_not_configured", "not_found")


def follow_job(session: Session, job: Job, *, label: str, cancel_on_interrupt: bool) -> Job:
    """The job as it ended. Raises `TimedOut` after `--timeout`, and `KeyboardInterrupt` after telling what goes on."""
    try:
        with job_display(session.out, label) as display:
            display.update(job)
            for state in _states(session.client, job):
                job = state
                display.update(job)
    except KeyboardInterrupt:
        _interrupted(session, job, cancel=cancel_on_interrupt)
        raise
    return job


def load_first(session: Session, model: ModelStatus) -> None:
    """For a person at a terminal: load a model that is not loaded, with a bar, before it is asked something.

    Elsewhere the request itself does that. Raises `CtlError` where it cannot be loaded.
    """
    if model.state not in {"not_loaded", "loading"} or model.service != "local" or not session.out.stderr_interactive:
        return
    request = JobRequest(type="load", params=JobParams(model=model.id))
    job = decode(session.client.post("/jobs", request), Job)
    job_result(follow_job(session, job, label=f"loading {model.name}", cancel_on_interrupt=False))


def job_result(job: Job) -> int:
    """The exit code of an ended job. Raises `CtlError` with the daemon's own reason."""
    if job.state == "succeeded":
        return DONE
    reason = printable(job.error or f"the job {job.id} {job.state}")
    if job.error_code in _STATUS_NOT_FOUND:
        raise NotFound(reason)
    if job.error_code == "timeout":
        raise TimedOut(reason)
    raise CtlError(reason)


def _states(client: Client, job: Job) -> Iterator[Job]:
    """Every state of a job up to its end; asked for once more where the stream breaks off before."""
    if job.ended_at is not None:
        return
    path = f"/jobs/{segment(job.id)}"
    hint = f"see: llmctl jobs watch {job.id}"
    try:
        with client.stream("GET", f"{path}/events", seconds_max=client.timeout_seconds) as events:
            for event in events:
                job = _state(event)
                yield job
                if job.ended_at is not None:
                    return
    except TimedOut:
        raise TimedOut(f"the job {job.id} is not done after {client.timeout_seconds} s", hint=hint) from None
    job = decode(client.get(path), Job)
    if job.ended_at is None:
        raise CtlError(f"the daemon stopped telling about the job {job.id}", hint=hint)
    yield job


def _state(event: ServerSentEvent) -> Job:
    if event.kind == "error":
        raise CtlError(printable(decode(event.data, ErrorAnswer).error.message))
    return decode(event.data, Job)


def _interrupted(session: Session, job: Job, *, cancel: bool) -> None:
    if not cancel:
        session.out.note(f"the job {job.id} goes on; see it with: llmctl jobs watch {job.id}")
        return
    try:
        session.client.post(f"/jobs/{segment(job.id)}/cancel")
    except CtlError as error:
        session.out.note(f"the job {job.id} was not cancelled: {error.message}", "red")
    else:
        session.out.note(f"the job {job.id} is cancelled")
