"""Requests that have ended: the last ones each, older ones summed up by day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from llmvisor.control.api import UsageRow
from llmvisor.store import limits
from llmvisor.store.rows import Row, found
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database

UsageGroup = Literal["model", "day", "service", "tier", "key"]
USAGE_GROUPS: tuple[UsageGroup, ...] = get_args(UsageGroup)
SUCCEEDED = "succeeded"
CANCELLED = "cancelled"


class EndedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request that has ended, however it did: a row of `usage`."""

    time: str
    """When it ended: ISO 8601, UTC."""
    request_id: str
    model: str
    service: str
    tier: str | None = None
    task_type: str
    """chat, completion, embedding, rerank, …: what was asked for."""
    key_name: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    status: str = SUCCEEDED
    """succeeded, cancelled, or the code of the error."""
    cost: float = 0.0


_TABLE = "usage"
_COLUMNS = EndedRequest.__struct_fields__
_INSERT = f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "first_token_ms", "total_ms", "cost")
_BY_DAY = ("day", "model", "service", "tier", "task_type", "key_name")
_COUNTED = ("requests", "errors", "first_tokens")
# No value of `tier` and `key_name` is empty, which therefore stands for none: a key cannot be compared with NULL.
_SINGLE = f"""
SELECT substr(time, 1, 10) AS day, model, service, ifnull(tier, '') AS tier, task_type,
  ifnull(key_name, '') AS key_name, 1 AS requests,
  status NOT IN ('{SUCCEEDED}', '{CANCELLED}') AS errors, first_token_ms IS NOT NULL AS first_tokens,
  prompt_tokens, cached_tokens, completion_tokens, ifnull(first_token_ms, 0.0) AS first_token_ms, total_ms, cost
FROM usage"""  # noqa: S608
_TIMES_AND_COST = ("first_token_ms", "total_ms", "cost")
# Not sum(): it fails where a damaged number makes it too large.
_SUMS = ", ".join(
    f"total({name}) AS {name}" if name in _TIMES_AND_COST else f"CAST(total({name}) AS INTEGER) AS {name}"
    for name in (*_COUNTED, *_SUMMED)
)
_ALL = ", ".join((*_BY_DAY, *_COUNTED, *_SUMMED))
_FOLD = f"""
INSERT INTO usage_days ({_ALL})
SELECT {", ".join(_BY_DAY)}, {_SUMS} FROM ({_SINGLE} WHERE id <= ?) WHERE true GROUP BY {", ".join(_BY_DAY)}
ON CONFLICT ({", ".join(_BY_DAY)}) DO UPDATE SET
{", ".join(f"{name} = {name} + excluded.{name}" for name in (*_COUNTED, *_SUMMED))}"""  # noqa: S608


class UsageRows:
    """Every call raises `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, requests: Sequence[EndedRequest]) -> None:
        """Write many at once, or none, however long it takes: they must not be there twice.

        Single requests beyond the bound become part of their day's sums.
        """
        rows = [list(msgspec.structs.astuple(request)) for request in requests]

        def work(database: Database) -> None:
            database.conn.executemany(_INSERT, rows)
            _fold_old(database)

        await self._store.run(work, patient=True)

    async def sums(self, group_by: Sequence[UsageGroup], *, since: str | None = None) -> list[UsageRow]:
        """All requests by these columns together, in their order; with none of them one row, or none.

        `since` is the first day, `YYYY-MM-DD`, of UTC as all days. Of too many rows those of the last days are given.
        """
        # Nothing but known names gets into the query, each once.
        ordered: list[UsageGroup] = [name for name in dict.fromkeys(group_by) if name in USAGE_GROUPS]
        chosen = "".join(f"{name}, " for name in ordered)
        newest_first = ", ".join(["day DESC"] * ("day" in ordered) + [name for name in ordered if name != "day"])
        sql = (
            f"SELECT {chosen}{_SUMS} FROM (SELECT *, key_name AS key FROM "  # noqa: S608
            f"({_SINGLE} UNION ALL SELECT {_ALL} FROM usage_days)) "
            f"WHERE day >= ?{f' GROUP BY {chosen[:-2]} ORDER BY {newest_first}' if ordered else ''} "
            f"LIMIT {limits.usage_sums_max}"
        )

        def work(database: Database) -> list[UsageRow]:
            rows = found(database, _TABLE, lambda row: _usage_row(row, ordered), sql, [since or ""])
            return sorted(
                (row for row in rows if row.requests), key=lambda row: [getattr(row, name) or "" for name in ordered]
            )

        return await self._store.read(work)

    async def recent(self, limit: int) -> list[EndedRequest]:
        """The last requests, the newest first."""
        sql = f"SELECT {', '.join(_COLUMNS)} FROM usage ORDER BY id DESC LIMIT ?"  # noqa: S608

        def work(database: Database) -> list[EndedRequest]:
            return list(found(database, _TABLE, lambda row: msgspec.convert(row, EndedRequest), sql, [limit]))

        return await self._store.read(work)


def _fold_old(database: Database) -> None:
    """Every thousandth request or so: what is too old to be kept singly."""
    first, last = database.conn.execute("SELECT min(id), max(id) FROM usage").fetchone()
    if first is None or last - first < limits.usage_rows_max + limits.usage_rows_slack:
        return
    end = last - limits.usage_rows_max
    database.conn.execute(_FOLD, [end])
    database.conn.execute("DELETE FROM usage WHERE id <= ?", [end])
    oldest = "SELECT rowid FROM usage_days ORDER BY day DESC LIMIT -1 OFFSET ?"
    database.conn.execute(f"DELETE FROM usage_days WHERE rowid IN ({oldest})", [limits.usage_day_rows_max])  # noqa: S608


def _usage_row(row: Row, group_by: Sequence[UsageGroup]) -> UsageRow:
    """Means out of sums."""
    requests, firsts = _number(row, "requests"), _number(row, "first_tokens")
    fields: dict[str, object] = {name: row[name] or None for name in group_by}
    fields |= {name: row[name] for name in ("requests", "errors", *_SUMMED)}
    fields["first_token_ms"] = _number(row, "first_token_ms") / firsts if firsts else None
    fields["total_ms"] = _number(row, "total_ms") / max(requests, 1)
    return msgspec.convert(fields, UsageRow)


def _number(row: Row, name: str) -> float:
    value = row[name]
    return value if isinstance(value, int | float) else 0.0
