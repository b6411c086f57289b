"""What registries were found to have, kept for a while: `llm_registry_models`, and which search found which of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from llmvisor.control.api import FoundModel
from llmvisor.store import limits
from llmvisor.store.rows import Row, Value, found, json_text, put
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database

_TABLE = "llm_registry_models"
_BOOLEANS = ("is_gguf", "is_mlx", "gated")
_NAMES = msgspec.json.Decoder(list[str])


class FoundRow(msgspec.Struct, frozen=True):
    model: FoundModel
    fetched_at: str


class RegistryRows:
    """Every call raises `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, registry: str, query: str, models: Sequence[FoundModel], *, fetched_at: datetime) -> None:
        """Write what a search has found, in its order. The oldest rows beyond the bound go."""
        time = fetched_at.isoformat()
        rows = [_row(model, time) for model in models]
        search: Row = {
            "registry": registry,
            "query": query,
            "fetched_at": time,
            "db_keys": json_text([row["db_key"] for row in rows]),
        }

        def work(database: Database) -> None:
            for row in rows:
                put(database, _TABLE, row, key=["db_key"])
            put(database, "llm_registry_searches", search, key=["registry", "query"])
            _trim(database, _TABLE, limits.registry_rows_max)
            _trim(database, "llm_registry_searches", limits.registry_searches_max)

        await self._store.run(work)

    async def search(self, registry: str, query: str, *, since: datetime) -> list[FoundRow] | None:
        """What this search found, in its order; None where it was not made since then."""

        def work(database: Database) -> list[FoundRow] | None:
            made = database.conn.execute(
                "SELECT db_keys FROM llm_registry_searches WHERE registry = ? AND query = ? AND fetched_at >= ?",
                [registry, query, since.isoformat()],
            ).fetchone()
            if made is None:
                return None
            sql = "SELECT * FROM llm_registry_models WHERE db_key = ?"
            keys: list[str] = _NAMES.decode(str(made[0]))
            return [row for key in keys for row in found(database, _TABLE, _found, sql, [key])]

        return await self._store.read(work)

    async def get(self, registry: str, id: str) -> FoundRow | None:
        sql = "SELECT * FROM llm_registry_models WHERE db_key = ?"

        def work(database: Database) -> FoundRow | None:
            return next(found(database, _TABLE, _found, sql, [_key(registry, id)]), None)

        return await self._store.read(work)


def _key(registry: str, id: str) -> str:
    return f"{registry}~{id}"


def _row(model: FoundModel, fetched_at: str) -> Row:
    row: dict[str, Value] = msgspec.structs.asdict(model)
    return row | {
        "db_key": _key(model.registry, model.id),
        "name": model.id,
        "model_id": model.id,
        "upstream_model_name": model.id,
        "service": model.registry,
        "tags": json_text(model.tags),
        "fetched_at": fetched_at,
    }


def _found(row: Row) -> FoundRow:
    fields: dict[str, object] = {name: row[name] for name in FoundModel.__struct_fields__}
    fields |= {name: bool(row[name]) for name in _BOOLEANS}
    fields["tags"] = _NAMES.decode(str(row["tags"]))
    return FoundRow(msgspec.convert(fields, FoundModel), str(row["fetched_at"]))


def _trim(database: Database, table: str, most: int) -> None:
    oldest = f"SELECT rowid FROM {table} ORDER BY fetched_at DESC LIMIT -1 OFFSET ?"  # noqa: S608 - a name of ours
    database.conn.execute(f"DELETE FROM {table} WHERE rowid IN ({oldest})", [most])  # noqa: S608
