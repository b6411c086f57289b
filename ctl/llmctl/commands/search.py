"""`llmctl search`."""

from __future__ import annotations

from typing import cast

from llmctl import limits, render
from llmctl.client import decode_list
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.waiting import waiting_note
from llmvisor.control.api import RegistryModel

_COLUMNS = (
    Column("SOURCE", fold=True),
    Column("SIZE", right=True),
    Column("PARAMS", right=True),
    Column("FITS"),
    Column("DOWNLOADS", right=True),
    Column("LIKES", right=True),
    Column("NOTE", silent=("",)),
)


def search(session: Session) -> int:
    """What the registries have, as `llmctl install` takes it."""
    args = session.args
    words = " ".join(cast("list[str]", args.text))
    limit = cast("int | None", args.limit)
    query = {"q": words, "registry": args.registry, "limit": None if limit is None else str(limit)}
    with waiting_note(session.out, f"looking for {words}"):
        body = session.client.get("/llm/registry/models", query, timeout_seconds=limits.search_seconds_max)
    found = decode_list(body, RegistryModel)
    if session.json:
        session.out.json(body)
    elif found:
        rows = [_row(model) for model in found]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
        if session.out.interactive:
            session.out.note("install one with: llmctl install SOURCE")
    else:
        session.out.note("nothing found; fewer words find more")
    return DONE


def _row(model: RegistryModel) -> list[Cell]:
    fits = {True: Cell("yes", "green"), False: Cell("no", "red"), None: Cell("")}[model.fits]
    return [
        Cell(model.source),
        Cell(render.size(model.size)),
        Cell(render.count(model.parameters or None)),
        fits,
        Cell(render.count(model.downloads)),
        Cell(render.count(model.likes)),
        Cell("needs a token" if model.gated else "", "yellow"),
    ]
