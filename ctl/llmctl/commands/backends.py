"""`llmctl backends`."""

from __future__ import annotations

import sys

from llmctl import limits
from llmctl.client import decode
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.terminal import printable
from llmvisor.control.api import BackendStatus, ListAnswer

_COLUMNS = (
    Column("BACKEND"),
    Column("STATE"),
    Column("VERSION"),
    Column("DEVICES", fold=True),
    Column("PYTHON", fold=True),
)


def backends(session: Session) -> int:
    """Each backend: whether its engine can be imported, its version, its devices, and how to get what is missing."""
    session.out.note("importing each engine in a process of its own …")
    body = session.client.get("/llm/backends", timeout_seconds=limits.backends_seconds_max)
    found = [decode(item, BackendStatus) for item in decode(body, ListAnswer).data]
    if session.json:
        session.out.json(body)
        return DONE
    rows = [_row(backend) for backend in found]
    lines = table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint)
    for backend in found:
        if backend.error is not None:
            lines.append(f"{backend.name}: {printable(backend.error)}")
            lines.append(f"  {printable(backend.hint or '')}")
    session.out.lines(lines)
    return DONE


def _row(backend: BackendStatus) -> list[Cell]:
    state, style = ("ready", "green") if backend.usable else ("broken", "red")
    if not backend.installed:
        state, style = "not installed", "yellow"
    return [
        Cell(backend.name),
        Cell(state, style),
        Cell(backend.version or ""),
        Cell(", ".join(backend.devices)),
        Cell("" if backend.python == sys.executable else backend.python),
    ]
