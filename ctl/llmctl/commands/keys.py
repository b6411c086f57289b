"""`llmctl keys`."""

from __future__ import annotations

from typing import cast

import msgspec

from llmctl import render
from llmctl.client import decode, segment
from llmctl.errors import DONE, UsageError
from llmctl.session import Session
from llmctl.table import Cell, Column, table
from llmctl.terminal import printable
from llmctl.times import local_time
from llmvisor.control.api import KeyInfo, KeyMade, KeyRequest, KeyScope, KeysStatus

_COLUMNS = (
    Column("NAME", fold=True),
    Column("KEY"),
    Column("SCOPES"),
    Column("MODELS", fold=True, silent=("", "all")),
    Column("RATE", right=True, silent=("",)),
    Column("AT ONCE", right=True, silent=("",)),
    Column("PRIORITY", silent=("", "high")),
    Column("REQUESTS", right=True),
    Column("LAST USED", silent=("",)),
    Column("EXPIRES", silent=("",)),
    Column("FROM"),
)


def keys(session: Session) -> int:
    """List the API keys; add one, or revoke one."""
    action = cast("str", session.args.action)
    name = cast("str | None", session.args.name)
    if action == "list":
        if name is not None:
            raise UsageError("keys list takes no NAME", hint=f"perhaps: llmctl keys revoke {name}")
        return _list(session)
    if name is None:
        raise UsageError(f"keys {action} needs a NAME", hint=f"for example: llmctl keys {action} webapp")
    return _add(session, name) if action == "add" else _revoke(session, name)


def _list(session: Session) -> int:
    body = session.client.get("/keys")
    found = decode(body, KeysStatus)
    if session.json:
        session.out.json(body)
        return DONE
    if found.problem:
        session.out.note(printable(found.problem))
    if found.data:
        rows = [_row(key) for key in found.data]
        session.out.lines(table(_COLUMNS, rows, width=session.out.width, paint=session.out.paint))
    elif found.asked:
        session.out.note("no keys, and the port asks for one: llmctl keys add NAME")
    else:
        session.out.note("no keys: the port asks for none")
    return DONE


def _add(session: Session, name: str) -> int:
    args = session.args
    request = KeyRequest(
        name=name,
        scopes=cast("list[KeyScope] | None", args.scope) or ["inference"],
        models=[model for model in (cast("str | None", args.models) or "").split(",") if model],
        rate_per_minute=args.rate,
        concurrent=args.concurrent,
        priority=args.priority or "high",
        expires_seconds=args.expires,
    )
    first = not decode(session.client.get("/keys"), KeysStatus).asked
    body = session.client.post("/keys", request)
    made = decode(body, KeyMade)
    if session.json:
        session.out.json(body)
        return DONE
    session.out.line(printable(made.key))
    session.out.note("this is the one time that the key is shown: only its hash is kept")
    if first:
        session.out.note("from now on the TCP port asks for a key")
    return DONE


def _revoke(session: Session, name: str) -> int:
    query = "?ask_no_more=true" if session.args.ask_no_more else ""
    session.client.delete(f"/keys/{segment(name)}{query}")
    left = decode(session.client.get("/keys"), KeysStatus)
    if session.json:
        session.out.json(msgspec.json.encode(left))
        return DONE
    session.out.line(f"{printable(name)} is good for nothing from now on")
    if not left.data and left.asked:
        session.out.note("no key is left, and the port asks for one; revoke the last with --open to ask for none")
    elif not left.asked:
        session.out.note("no key is left: the port asks for none")
    return DONE


def _row(key: KeyInfo) -> list[Cell]:
    expires = local_time(key.expires_at) if key.expires_at else ""
    return [
        Cell(printable(key.name)),
        Cell(printable(key.hint)),
        Cell(", ".join(key.scopes)),
        Cell(printable(", ".join(key.models)) or "all"),
        Cell("" if key.rate_per_minute is None else f"{key.rate_per_minute:g}/min"),
        Cell("" if key.concurrent is None else f"{key.running}/{key.concurrent}"),
        Cell(key.priority),
        Cell(render.count(key.requests)),
        Cell(local_time(key.last_used_at) if key.last_used_at else ""),
        Cell("expired", "red") if key.expired else Cell(expires),
        Cell("configuration" if key.configured else "llmctl"),
    ]
