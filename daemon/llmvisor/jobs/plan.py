"""What becomes of jobs: which may run now, when one is tried again, what a restart does to each. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import msgspec

from llmvisor import limits
from llmvisor.control.api import Job, JobParams, JobRequest, JobState, JobType

ENDED: frozenset[JobState] = frozenset({"cancelled", "succeeded", "failed"})
FETCHES: frozenset[JobType] = frozenset({"install", "import", "update"})
"""Those that bring files, of which only so many run at once."""
KEPT: frozenset[JobType] = frozenset({*FETCHES, "delete"})
"""Those that go on after a restart: nobody is told of one before it is written down."""
CUT_OFF = frozenset({"network", "store_unavailable"})
"""Errors after which the same work goes on with what is there: it is whole as far as it goes."""
RESTARTED = "the daemon was restarted"


class Limits(msgspec.Struct, frozen=True):
    """How many jobs run side by side."""

    fetches: int
    running: int = limits.jobs_running_max


def startable(jobs: Sequence[Job], due: Mapping[str, float], now: float, most: Limits) -> list[str]:
    """The ids of the queued jobs that begin now. `jobs` is in the order in which they came.

    `due` tells when a job that has failed is tried again, in the seconds of `now`.
    """
    ahead = [job for job in jobs if job.state not in ENDED]
    running = sum(job.state != "queued" for job in ahead)
    fetches = sum(job.state != "queued" and job.type in FETCHES for job in ahead)
    waiting = blockers(ahead)
    chosen: list[str] = []
    for job in ahead:
        if job.state != "queued" or job.id in waiting or due.get(job.id, now) > now:
            continue
        if running >= most.running or (job.type in FETCHES and fetches >= most.fetches):
            continue
        chosen.append(job.id)
        running += 1
        fetches += job.type in FETCHES
    return chosen


def blockers(jobs: Iterable[Job]) -> dict[str, Job]:
    """The job that each queued one waits for, where it waits for one: the last of those that came before it."""
    earlier: dict[str, list[Job]] = {}
    found: dict[str, Job] = {}
    for job in jobs:
        if job.state in ENDED:
            continue
        about = subjects(job)
        if job.state == "queued":
            before = (other for subject in about for other in reversed(earlier.get(subject, ())))
            blocker = next((other for other in before if _waits_for(job, other)), None)
            if blocker is not None:
                found[job.id] = blocker
        for subject in about:
            earlier.setdefault(subject, []).append(job)
    return found


def queued_stages(jobs: Sequence[Job], due: Container[str]) -> dict[str, str]:
    """What each queued job says that it waits for, but for those that are tried again."""
    waiting = blockers(jobs)
    said = {id: f"queued after {_article(other.type)} {other.type}, {other.id}" for id, other in waiting.items()}
    return {job.id: said.get(job.id, "queued") for job in jobs if job.state == "queued" and job.id not in due}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _waits_for(job: Job, earlier: Job) -> bool:
    """Jobs of one model run one after another. An unload gives memory back: it waits for no download and ends loads."""
    if job.type != "unload":
        return True
    return earlier.type == "delete" or (earlier.type == "unload" and not job.params.force)


def subjects(job: Job) -> frozenset[str]:
    """What a job is about: models, and where new ones come from."""
    params = job.params
    models = {f"model {name.casefold()}" for name in (params.model, params.name) if name}
    origins = {f"source {params.source}"} if params.source else {f"path {params.path}"} if params.path else set[str]()
    return frozenset(models | origins)


def next_wake(due: Mapping[str, float], now: float) -> float | None:
    """When a job that waits to be tried again may begin."""
    return min((at for at in due.values() if at > now), default=None)


def superseded(jobs: Iterable[Job], request: JobRequest) -> list[str]:
    """The loads that an unload ends: else one would go on waiting, and load the model again behind it."""
    if request.type != "unload":
        return []
    return [
        job.id
        for job in jobs
        if job.type == "load" and job.state in {"queued", "running"} and job.params.model == request.params.model
    ]


def same_work(jobs: Iterable[Job], request: JobRequest) -> Job | None:
    """The job under way that does what is asked already."""
    asked = _asked(request.type, request.params)
    for job in jobs:
        if job.state in {"queued", "running"} and (job.type, _asked(job.type, job.params)) == (request.type, asked):
            return job
    return None


def _asked(type: JobType, params: JobParams) -> JobParams:
    """Without the name that an installation finds on its way."""
    return msgspec.structs.replace(params, model="") if type in {"install", "import"} else params


def after_restart(job: Job, now: str) -> Job:
    """What is left of a job that an earlier daemon had. `now` is the time for people."""
    if job.state in ENDED:
        return job
    if job.state == "cancelling":
        return msgspec.structs.replace(job, state="cancelled", stage="cancelled", ended_at=now, bytes_per_second=0.0)
    if job.state == "running" and job.type not in KEPT:
        hint = f"`llmctl {job.type} {job.params.model}` does it again"
        return msgspec.structs.replace(
            job, state="failed", ended_at=now, error=RESTARTED, error_code="restarted", hint=hint
        )
    return msgspec.structs.replace(job, state="queued", stage="queued", bytes_per_second=0.0, retry_at=None)


def retry_delay_seconds(fruitless: int, retry_after_seconds: float | None, random: float) -> float:
    """How long to wait after so many tries in a row that brought nothing.

    Exponential backoff with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015),
    and never before the server wants to be asked again. `random` lies in [0, 1).
    """
    ceiling = min(limits.job_backoff_seconds_max, limits.job_backoff_seconds * 2.0 ** max(0, fruitless - 1))
    asked = min(retry_after_seconds or 0.0, limits.job_retry_after_seconds_max)
    return max(asked, ceiling * random)


def forgotten(jobs: Sequence[Job]) -> list[Job]:
    """The ended jobs that are too old to be kept, of all in the order in which they came."""
    ended = [job for job in jobs if job.state in ENDED]
    return ended[: -limits.jobs_ended_kept_max]


def forerunner(jobs: Iterable[Job], job: Job) -> Job | None:
    """The failed job whose files this one goes on with: the last that did the same work and may have been cut off."""
    asked = _asked(job.type, job.params)
    same = (one for one in jobs if one.state in ENDED and keeps_files(one) and _asked(one.type, one.params) == asked)
    return max(same, key=lambda one: one.ended_at or "", default=None)


def keeps_files(job: Job) -> bool:
    """Whether what a job has fetched so far is of use: it goes on with it, or what follows it does."""
    if job.type not in FETCHES:
        return False
    return job.state not in ENDED or (job.state == "failed" and job.error_code in CUT_OFF)
