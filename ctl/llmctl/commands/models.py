"""`llmctl models` and `show`."""

from __future__ import annotations

import gc
from typing import NamedTuple, cast

import msgspec

from llmctl import limits, render
from llmctl.client import Page, decode, segment
from llmctl.errors import DONE, UsageError
from llmctl.follow import run_job
from llmctl.session import Session
from llmctl.status_view import STATE_STYLES, name_with_tier, pair_lines
from llmctl.table import Cell, Column, table
from llmctl.terminal import printable
from llmctl.times import local_time
from llmvisor.control.api import Job, JobParams, JobRequest, ListAnswer, ModelStatus

_COLUMNS = (
    Column("MODEL", fold=True),
    Column("TYPE"),
    Column("STATE"),
    Column("SIZE", right=True),
    Column("PARAMS", right=True),
    Column("QUANT"),
    Column("CTX", right=True),
    Column("BACKEND"),
    Column("SERVICE", silent=("", "local")),
    Column("ALIASES", fold=True),
)


def models(session: Session) -> int:
    """Every model that fits the filters; on a terminal the first of many. Or go back to a model's earlier revision."""
    if session.args.action == "rollback":
        return _rollback(session)
    if session.args.model:
        raise UsageError("models takes no MODEL", hint=f"see: llmctl show {session.args.model}")
    # Ten thousand objects that stay until the end: looking for garbage among them takes a quarter of the time.
    gc.disable()
    first = _first(session)
    if session.json:
        session.out.json(first.body)
    elif first.models:
        rows = [_row(model) for model in first.models]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
        if first.has_more and session.out.interactive:
            more = "all: llmctl models --all, some: llmctl models --search TEXT"
            session.out.note(f"the first {len(rows)}; {more}", "dim")
    else:
        session.out.note("no such models")
    return DONE


class _First(NamedTuple):
    models: list[ModelStatus]
    body: bytes
    has_more: bool


def _first(session: Session) -> _First:
    """As many models as were asked for: for a person a page of them, for a program all."""
    args = session.args
    query = {"type": args.type, "state": args.state, "service": args.service, "tier": args.tier, "q": args.search}
    wanted = cast("int | None", args.limit)
    if wanted is None and session.out.interactive and not session.json and not args.all:
        wanted = limits.models_shown_max
    if wanted is not None and wanted <= limits.page_items_max:
        query["limit"] = str(wanted)
    if session.json:
        return _as_json(session, query, wanted)
    found: list[ModelStatus] = []
    for page in session.client.pages("/llm/models", query, ModelStatus):
        found += page.data
        if wanted is not None and len(found) >= wanted:
            return _First(found[:wanted], b"", len(found) > wanted or page.next_cursor is not None)
    return _First(found, b"", has_more=False)


def _as_json(session: Session, query: dict[str, str | None], wanted: int | None) -> _First:
    data: list[msgspec.Raw] = []
    for page in session.client.pages("/llm/models", query, msgspec.Raw):
        data += page.data
        if wanted is not None and len(data) >= wanted:
            break
    body = msgspec.json.encode(ListAnswer(data[:wanted]))
    decode(body, Page[ModelStatus])
    return _First([], body, has_more=False)


def _rollback(session: Session) -> int:
    name = cast("str | None", session.args.model)
    if not name:
        raise UsageError("models rollback needs a MODEL", hint="see: llmctl models")
    request = JobRequest(type="update", params=JobParams(model=name, rollback=True))

    def done(job: Job) -> str:
        return printable(job.result) if job.result else f"{name} is back at its earlier revision"

    return run_job(session, request, doing=f"rolling {name} back", done=done)


def show(session: Session) -> int:
    """All that is known of one model."""
    body = session.client.get(f"/llm/models/{segment(cast('str', session.args.model))}")
    model = decode(body, ModelStatus)
    if session.json:
        session.out.json(body)
        return DONE
    session.out.line(session.out.paint(name_with_tier(model.name, model.tier), "bold"))
    session.out.lines(pair_lines(_pairs(model)))
    return DONE


def _row(model: ModelStatus) -> list[Cell | str]:
    return [
        name_with_tier(model.name, model.tier),
        model.type,
        Cell(render.state(model.state), STATE_STYLES.get(model.state, "")),
        render.size(model.size),
        render.count(model.parameters or None),
        model.quantization or "",
        _number(model.n_ctx or model.context_length),
        model.backend,
        model.service,
        ", ".join(model.aliases),
    ]


def _pairs(model: ModelStatus) -> list[tuple[str, str]]:
    kept = [word for word, set_ in (("pinned", model.pinned), ("preloaded", model.preload)) if set_]
    trained = _number(model.context_length)
    context = f"{_number(model.n_ctx)} of {trained} as trained" if model.n_ctx and trained else trained
    return [
        ("state", render.state(model.state) + (f", {', '.join(kept)}" if kept else "")),
        ("error", model.error or ""),
        ("type", model.type),
        ("tier", model.tier or ""),
        ("aliases", ", ".join(model.aliases)),
        ("service", model.service),
        ("backend", model.backend),
        ("architecture", model.architecture or ""),
        ("parameters", render.count(model.parameters or None)),
        ("quantization", model.quantization or ""),
        ("context", context or _number(model.n_ctx)),
        ("capabilities", ", ".join(model.capabilities or model.capabilities_expected)),
        ("source", model.source or ""),
        ("revision", model.revision or ""),
        ("file", model.path or ""),
        ("size", _bytes(model.size)),
        ("memory", _memory(model)),
        ("template", (model.chat_template_sha256 or "")[:16]),
        ("loaded", local_time(model.loaded_at) if model.loaded_at else ""),
    ]


def _memory(model: ModelStatus) -> str:
    """What the next load is taken to need, and what loads before it have taken."""
    predicted = f"about {_bytes(model.memory_estimated)} predicted" if model.memory_estimated else ""
    measured = f"at most {_bytes(model.memory_measured)} measured" if model.memory_measured else "none measured"
    return f"{predicted}, {measured}" if predicted else ""


def _bytes(count: int | None) -> str:
    return "" if count is None else render.long_size(count)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
