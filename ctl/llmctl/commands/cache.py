"""`llmctl cache`."""

from __future__ import annotations

from llmctl import render
from llmctl.client import decode
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.status_view import pair_lines
from llmvisor.control.api import CacheCleared, CacheStats


def cache(session: Session) -> int:
    """What the response cache holds and how often it helped; or empty it."""
    if session.args.action == "clear":
        return _clear(session)
    body = session.client.get("/internal/cache/stats")
    stats = decode(body, CacheStats)
    if session.json:
        session.out.json(body)
        return DONE
    asked = stats.hits + stats.misses + stats.coalesced
    pairs = [
        ("answers", f"{stats.entries}, {render.long_size(stats.size_bytes)}"),
        ("on disk", str(stats.persisted_entries) if stats.persisted_entries else ""),
        ("asked", f"{asked} time{'' if asked == 1 else 's'}"),
        ("hits", f"{stats.hits}, and {stats.coalesced} shared another one's run" if asked else ""),
        ("misses", str(stats.misses) if asked else ""),
        ("hit rate", f"{100 * stats.hit_rate:.0f}%" if asked else ""),
        ("evicted", str(stats.evictions) if stats.evictions else ""),
    ]
    session.out.lines(pair_lines(pairs))
    return DONE


def _clear(session: Session) -> int:
    body = session.client.post("/internal/cache/clear")
    cleared = decode(body, CacheCleared).cleared
    if session.json:
        session.out.json(body)
    else:
        session.out.line(f"{cleared} answer{'' if cleared == 1 else 's'} forgotten")
    return DONE
