"""Follows a job to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from llmctl import limits, render
from llmctl.client import Client, CutOff, decode, segment
from llmctl.errors import DONE, CtlError, NotFound, NotRunning, TimedOut
from llmctl.progress import job_display
from llmctl.session import Session
from llmctl.sse import ServerSentEvent
from llmctl.terminal import printable
from llmctl.times import seconds_between
from llmvisor.control.api import ErrorAnswer, Job, JobParams, JobRequest, ModelStatus

_SURVIVES = ("install", "import", "update")
"""Types of jobs that go on when the daemon starts again."""
_STATUS_NOT_FOUND = ("model_not_found", "tier_not_configured", "not_found")


def run_job(session: Session, request: JobRequest, *, doing: str, done: Callable[[Job], str]) -> int:
    """Ask for a job, and wait for it unless told otherwise; gives the exit code. `done` tells what has come of it.

    Raises `CtlError` with the daemon's reason, and what `follow_job` raises.
    """
    args = session.args
    job = decode(session.client.post("/jobs", request), Job)
    if args.wait:
        job = follow_job(session, job, label=doing, cancel_on_interrupt=bool(args.cancel_on_interrupt))
    if session.json:
        session.out.json(msgspec.json.encode(job))
    elif not args.wait:
        session.out.line(job.id)
    if not args.wait:
        return DONE
    code = job_result(job)
    if not session.json:
        took = seconds_between(job.started_at, job.ended_at)
        session.out.line(done(job) + (f" ({render.duration(took)})" if took is not None and took >= 0.1 else ""))
    return code


def follow_job(session: Session, job: Job, *, label: str, cancel_on_interrupt: bool) -> Job:
    """The job as it ended. Raises `TimedOut` after `--timeout`, and `KeyboardInterrupt` after telling what goes on."""
    try:
        with job_display(session.out, lambda _: label) as display:
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
        raise NotFound(reason, hint=job.hint)
    if job.error_code == "timeout":
        raise TimedOut(reason, hint=job.hint)
    raise CtlError(reason, hint=job.hint)


def _states(client: Client, job: Job) -> Iterator[Job]:
    """Every state of a job up to its end; its stream is taken up again where it breaks off before."""
    hint = f"see: llmctl jobs watch {job.id}"
    for _ in range(limits.streams_max):
        if job.ended_at is not None:
            return
        try:
            with client.stream("GET", f"/jobs/{segment(job.id)}/events", seconds_max=client.timeout_seconds) as events:
                for event in events:
                    job = _state(event)
                    yield job
                    if job.ended_at is not None:
                        return
        except TimedOut:
            raise TimedOut(f"the job {job.id} is not done after {client.timeout_seconds:g} s", hint=hint) from None
        except (CutOff, NotRunning):
            pass
        job = _asked_once_more(client, job, hint)
        yield job
    if job.ended_at is None:
        raise CtlError(f"the daemon stopped telling about the job {job.id}", hint=hint)


def _asked_once_more(client: Client, job: Job, hint: str) -> Job:
    """The job after its stream broke off. Raises `NotRunning` where the daemon has gone."""
    for left in reversed(range(limits.dying_daemon_tries_max)):
        try:
            return decode(client.get(f"/jobs/{segment(job.id)}"), Job)
        except NotRunning as gone:
            if job.type not in _SURVIVES:
                raise
            message = f"the daemon went away; the job {job.id} goes on when it runs again"
            raise NotRunning(message, hint=f"{gone.hint}\n  then {hint}") from None
        except CutOff:
            # One that has just been killed still takes connections for a moment.
            if not left:
                raise
            time.sleep(limits.poll_seconds)
    raise AssertionError("unreachable: the last try returns or raises")


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
