"""`llmctl models` and `show`."""

from __future__ import annotations

from typing import cast

from llmctl import render
from llmctl.client import decode, decode_list, segment
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.status_view import STATE_STYLES, local_time, name_with_tier, pair_lines
from llmctl.table import Cell, Column, table
from llmvisor.control.api import ModelStatus

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
    """Every model that fits the filters."""
    args = session.args
    query = {"type": args.type, "state": args.state, "service": args.service, "tier": args.tier, "q": args.search}
    body = session.client.get_list("/llm/models", cast("dict[str, str | None]", query))
    found = decode_list(body, ModelStatus)
    if session.json:
        session.out.json(body)
    elif found:
        rows = [_row(model) for model in found]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
    else:
        session.out.note("no such models")
    return DONE


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


def _row(model: ModelStatus) -> list[Cell]:
    return [
        Cell(name_with_tier(model.name, model.tier)),
        Cell(model.type),
        Cell(render.state(model.state), STATE_STYLES.get(model.state, "")),
        Cell(render.size(model.size)),
        Cell(render.count(model.parameters or None)),
        Cell(model.quantization or ""),
        Cell(_number(model.n_ctx or model.context_length)),
        Cell(model.backend),
        Cell(model.service),
        Cell(", ".join(model.aliases)),
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
        ("capabilities", ", ".join(model.capabilities)),
        ("file", model.path or ""),
        ("size", _bytes(model.size)),
        ("memory", _bytes(model.memory_estimated, about=True)),
        ("template", (model.chat_template_sha256 or "")[:16]),
        ("loaded", local_time(model.loaded_at) if model.loaded_at else ""),
    ]


def _bytes(count: int | None, *, about: bool = False) -> str:
    if count is None:
        return ""
    return f"about {render.long_size(count)} as configured" if about else render.long_size(count)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
