"""`llmctl postmortem`."""

from __future__ import annotations

from typing import cast

from llmctl.client import decode_list, segment
from llmctl.errors import DONE, UsageError
from llmctl.postmortem_view import crashes_table, postmortem_view
from llmctl.session import Session
from llmvisor.control.api import Postmortem


def postmortem(session: Session) -> int:
    """The last crashes of every model; of one model the newest in full, or the one of `--number`."""
    model, number = cast("str | None", session.args.model), cast("int | None", session.args.number)
    if number is not None and model is None:
        raise UsageError("--number takes a MODEL", hint="see: llmctl postmortem MODEL --number 2")
    path = "/llm/postmortems" if model is None else f"/llm/runtimes/{segment(model)}/postmortems"
    body = session.client.get(path)
    found = decode_list(body, Postmortem)
    if session.json:
        session.out.json(body)
        return DONE
    out = session.out
    if not found:
        out.note("no crashes since the daemon started")
        return DONE
    lists = model is None or (number is None and len(found) > 1)
    if lists:
        out.lines(crashes_table(found, width=out.width, paint=out.paint))
    if model is not None:
        if number is not None and number > len(found):
            raise UsageError(f"there are {len(found)} crashes of {model}, and no number {number}")
        shown = postmortem_view(found[(number or 1) - 1], width=out.width, paint=out.paint)
        out.lines(["", *shown] if lists else shown)
    return DONE
