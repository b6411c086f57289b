"""Watches several jobs to their end, over the one stream of all state changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator

import msgspec

from llmctl import limits
from llmctl.client import Client, CutOff, decode, decode_list, segment
from llmctl.errors import DONE, FAILED, CtlError, NotFound, TimedOut
from llmctl.progress import job_display
from llmctl.session import Session
from llmctl.status_view import job_subject, jobs_table
from llmvisor.control.api import Event, Job, ListAnswer


def watch_jobs(session: Session, jobs: list[Job] | None, *, cancel_on_interrupt: bool) -> int:
    """Bars until all have ended, then a table of them; exit code 1 where one failed. None = every job that runs.

    Raises `TimedOut` after `--timeout`, and `KeyboardInterrupt` after telling what goes on.
    """
    seen: dict[str, Job] = {job.id: job for job in jobs or ()}
    try:
        with job_display(session.out, lambda job: f"{job.type} {job_subject(job)}") as display:
            for job in _changes(session.client, None if jobs is None else list(seen)):
                seen[job.id] = job
                display.update(job)
    except KeyboardInterrupt:
        _interrupted(session, [job for job in seen.values() if job.ended_at is None], cancel=cancel_on_interrupt)
        raise
    return _told(session, list(seen.values()))


def _changes(client: Client, ids: list[str] | None) -> Iterator[Job]:
    """Each job as it is, then every change of one, until all have ended. Raises `TimedOut` after `--timeout`."""
    ends_at = None if client.timeout_seconds is None else time.monotonic() + client.timeout_seconds
    running: set[str] = set(ids or ())
    while True:
        left = math.inf if ends_at is None else ends_at - time.monotonic()
        if left <= 0:
            many = f"{len(running)} job{' is' if len(running) == 1 else 's are'}"
            raise TimedOut(f"{many} not done after {client.timeout_seconds or 0:g} s", hint="see: llmctl jobs")
        is_over = yield from _window(
            client, running, any_job=ids is None, seconds=min(left, limits.watch_window_seconds)
        )
        if is_over:
            return


def _window(client: Client, running: set[str], *, any_job: bool, seconds: float) -> Generator[Job, None, bool]:
    """The changes of some seconds; says whether all have ended.

    A daemon leaves events out for a reader that is too slow: each window begins with what is.
    """
    try:
        with client.stream("GET", "/events", seconds_max=seconds) as events:
            # Subscribed first: nothing falls between what was and what comes.
            for job in _now(client, running, any_job=any_job):
                yield _noted(running, job)
            if not running:
                return True
            try:
                for event in events:
                    job = decode(event.data, Event).job if event.kind == "job" else None
                    if job is not None and (job.id in running or (any_job and job.ended_at is None)):
                        yield _noted(running, job)
                        if not running:
                            return True
            except TimedOut:
                return False
    except CutOff:
        pass
    raise CtlError("the daemon went away", hint="once it runs again, go on with: llmctl jobs watch")


def _now(client: Client, running: set[str], *, any_job: bool) -> list[Job]:
    found = decode_list(client.get_list("/jobs", {}), Job) if any_job else []
    known = {job.id: job for job in found if job.ended_at is None or job.id in running}
    missing = sorted(running - known.keys())
    return [*known.values(), *(decode(client.get(f"/jobs/{segment(id)}"), Job) for id in missing)]


def _noted(running: set[str], job: Job) -> Job:
    if job.ended_at is None:
        running.add(job.id)
    else:
        running.discard(job.id)
    return job


def _told(session: Session, jobs: list[Job]) -> int:
    if session.json:
        session.out.json(msgspec.json.encode(ListAnswer([msgspec.Raw(msgspec.json.encode(job)) for job in jobs])))
    elif jobs:
        session.out.lines(jobs_table(jobs, width=session.out.width, paint=session.out.paint))
    else:
        session.out.note("no job is running")
    return DONE if all(job.state == "succeeded" for job in jobs) else FAILED


def _interrupted(session: Session, running: list[Job], *, cancel: bool) -> None:
    if not cancel:
        session.out.note("the jobs go on; see them with: llmctl jobs watch")
        return
    for job in running:
        attempt(session, job.id, lambda path: session.client.post(f"{path}/cancel"), "is cancelled")


def attempt(session: Session, job_id: str, call: Callable[[str], object], done: str) -> bool:
    """One call about one job of several: what goes wrong is told, and the others have their turn."""
    try:
        call(f"/jobs/{segment(job_id)}")
    except NotFound as error:
        session.out.note(error.message, "red")
        return False
    except CtlError as error:
        session.out.note(f"{job_id}: {error.message}", "red")
        return False
    session.out.note(f"{job_id} {done}")
    return True
