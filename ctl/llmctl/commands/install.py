"""`llmctl install`, `import`, `update` and `delete`."""

from __future__ import annotations

import os
import sys
from typing import cast

import msgspec

from llmctl import render
from llmctl.client import AnswerError, decode, decode_list, segment
from llmctl.errors import DONE, FAILED, CtlError, NotFound, UsageError
from llmctl.follow import run_job
from llmctl.session import Session
from llmctl.terminal import printable
from llmvisor.control.api import Job, JobParams, JobRequest, ModelStatus


def install(session: Session) -> int:
    """Fetch a model; without a source, on a terminal, one that is chosen from a list."""
    source = cast("str | None", session.args.source)
    if source is None:
        from llmctl.choosing import choose_source  # noqa: PLC0415 - for a person alone

        source = choose_source(session)
    params = JobParams(
        source=source,
        quantization=cast("str | None", session.args.quant),
        name=session.args.name,
        tier=session.args.tier,
    )
    return _installed(session, JobRequest(type="install", params=params), doing=f"installing {source}")


def import_(session: Session) -> int:
    """Take in a file or folder of this machine. Raises `NotFound` where there is none."""
    given = cast("str", session.args.path)
    # The daemon has another working directory, and another home.
    path = os.path.abspath(os.path.expanduser(given))
    if not os.path.lexists(path):
        raise NotFound(f"there is no {given}")
    params = JobParams(path=path, mode=session.args.mode, name=session.args.name, tier=session.args.tier)
    return _installed(session, JobRequest(type="import", params=params), doing=f"importing {os.path.basename(path)}")


def update(session: Session) -> int:
    """Fetch the new revision of one installed model, or of all."""
    model = cast("str | None", session.args.model)
    if bool(session.args.all) == (model is not None):
        raise UsageError("update takes a MODEL or --all", hint="see: llmctl models")
    if model is None:
        return _update_all(session)
    request = JobRequest(type="update", params=JobParams(model=model))
    return run_job(session, request, doing=f"updating {model}", done=lambda job: _said(job, f"{model} is up to date"))


def delete(session: Session) -> int:
    """Remove an installed model, once a person has said yes."""
    name = cast("str", session.args.model)
    if not session.args.yes:
        _confirm(session, name)
    request = JobRequest(type="delete", params=JobParams(model=name, force=bool(session.args.force)))

    def done(job: Job) -> str:
        freed = job.done if job.unit == "bytes" else 0
        if freed:
            return f"{name} is deleted, {render.long_size(freed)} are free again"
        return f"{name} is deleted" + (f": {printable(job.result)}" if job.result else "")

    return run_job(session, request, doing=f"deleting {name}", done=done)


def _installed(session: Session, request: JobRequest, *, doing: str) -> int:
    name = ""

    def done(job: Job) -> str:
        nonlocal name
        name = printable(job.params.model)
        return _said(job, f"{name or 'the model'} is installed")

    code = run_job(session, request, doing=doing, done=done)
    if name and session.out.interactive:
        session.out.note(f'  talk to it with: llmctl run {name} "Hello!"')
    return code


def _update_all(session: Session) -> int:
    """A job for each installed model; all are watched together."""
    from llmctl.watch_jobs import watch_jobs  # noqa: PLC0415 - for several jobs alone

    found = decode_list(session.client.get_list("/llm/models", {}), ModelStatus)
    names = [model.id for model in found if model.source is not None]
    if not names:
        raise NotFound("no model is installed", hint="install one with: llmctl install")
    jobs = [job for name in names if (job := _update_one(session, name)) is not None]
    code = DONE if len(jobs) == len(names) else FAILED
    if session.args.wait and jobs:
        return watch_jobs(session, jobs, cancel_on_interrupt=bool(session.args.cancel_on_interrupt)) or code
    for job in jobs:
        if session.json:
            session.out.json_line(msgspec.json.encode(job))
        else:
            session.out.line(job.id)
    return code


def _update_one(session: Session, name: str) -> Job | None:
    """None where the daemon refuses: that is told, and the others have their turn."""
    try:
        return decode(session.client.post("/jobs", JobRequest(type="update", params=JobParams(model=name))), Job)
    except AnswerError as error:
        session.out.note(f"{name} is not updated: {error.message}", "red")
        return None


def _confirm(session: Session, name: str) -> None:
    """Raises `UsageError` where nobody can be asked, `CtlError` for a no."""
    if not (sys.stdin and sys.stdin.isatty() and session.out.interactive) or session.json:
        raise UsageError(f"{name} is not deleted: nobody is there to say yes", hint="add --yes")
    model = decode(session.client.get(f"/llm/models/{segment(name)}"), ModelStatus)
    size = f" ({render.long_size(model.size)})" if model.size else ""
    session.out.stdout.flush()
    try:
        answer = input(f"delete {printable(model.id)}{size}? [y/N] ")
    except EOFError:
        session.out.line()
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise CtlError(f"{printable(model.id)} is left as it is")


def _said(job: Job, otherwise: str) -> str:
    return printable(job.result) if job.result else otherwise
