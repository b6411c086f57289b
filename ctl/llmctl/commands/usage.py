"""`llmctl usage`."""

from __future__ import annotations

from typing import cast

from llmctl import render
from llmctl.client import decode_list
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmvisor.control.api import UsageRow

_COLUMNS = (
    Column("REQUESTS", right=True),
    Column("ERRORS", right=True, silent=("", "0")),
    Column("PROMPT", right=True),
    Column("CACHED", right=True, silent=("", "0")),
    Column("ANSWER", right=True),
    Column("FIRST TOKEN", right=True),
    Column("TOTAL", right=True),
    Column("COST", right=True, silent=("",)),
)


def usage(session: Session) -> int:
    """Requests, tokens and mean times by what was asked."""
    groups = cast("str", session.args.by)
    body = session.client.get("/usage", {"group_by": groups, "since": session.args.since})
    found = decode_list(body, UsageRow)
    if session.json:
        session.out.json(body)
    elif found:
        names = groups.split(",")
        columns = (*(Column(name.upper(), fold=True) for name in names), *_COLUMNS)
        rows = [_row(row, names) for row in found]
        session.out.lines(table(columns, rows, width=session.out.width, paint=session.out.paint))
    else:
        session.out.note("no requests yet")
    return DONE


def _row(row: UsageRow, names: list[str]) -> list[Cell]:
    return [
        *(Cell(cast("str | None", getattr(row, name)) or "-") for name in names),
        Cell(str(row.requests)),
        Cell(str(row.errors), "red" if row.errors else ""),
        Cell(render.count(row.prompt_tokens)),
        Cell(render.count(row.cached_tokens)),
        Cell(render.count(row.completion_tokens)),
        Cell("" if row.first_token_ms is None else render.milliseconds(row.first_token_ms)),
        Cell(render.milliseconds(row.total_ms)),
        Cell(f"{row.cost:.2f}" if row.cost else ""),
    ]
