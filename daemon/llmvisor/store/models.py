"""Installed models: the rows of `llm_models` with service `local`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmvisor.control.api import InstalledModel
from llmvisor.models.installed import Installed
from llmvisor.store.rows import Row, Value, found, json_text, put
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database

SERVICE = "local"
_TABLE = "llm_models"
_COLUMN_OF = {
    "name": "upstream_model_name",
    "path": "file_path",
    "backend": "runtime_name",
    "context_length": "max_tokens",
}
"""Fields of an `InstalledModel` whose columns have other names."""
_BOOLEANS = ("has_loaded", "linked")
_NAMES = msgspec.json.Decoder(list[str])
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SAMPLING = msgspec.json.Decoder(dict[str, float | int | str])


class ModelRows:
    """Every call raises `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, models: Sequence[Installed]) -> None:
        """Write these, each over the one of the same name, or none; on the disk once this returns."""

        def work(database: Database) -> None:
            for installed in models:
                put(database, _TABLE, _row(installed), key=["name"])

        await self._store.run(work)

    async def get(self, name: str) -> Installed | None:
        sql = "SELECT * FROM llm_models WHERE name = ?"

        def work(database: Database) -> Installed | None:
            return next(found(database, _TABLE, _stored, sql, [_key(name)]), None)

        return await self._store.read(work)

    async def all(self) -> list[Installed]:
        """By name."""
        return await self.page(after=None, limit=-1)

    async def page(self, *, after: str | None, limit: int) -> list[Installed]:
        """At most `limit` models by name, from the one after this name on."""
        sql = "SELECT * FROM llm_models WHERE service = ? AND name > ? ORDER BY name LIMIT ?"
        values: list[Value] = [SERVICE, _key(after or ""), limit]
        return await self._store.read(lambda database: list(found(database, _TABLE, _stored, sql, values)))

    async def remove(self, names: Sequence[str]) -> None:
        keys = [[_key(name)] for name in names]
        sql = "DELETE FROM llm_models WHERE name = ?"

        def work(database: Database) -> None:
            database.conn.executemany(sql, keys)

        await self._store.run(work)


def _key(name: str) -> str:
    return f"{SERVICE}~{name}"


def _row(installed: Installed) -> Row:
    model = installed.model
    row: dict[str, Value] = {
        _COLUMN_OF.get(field, field): value for field, value in msgspec.structs.asdict(model).items()
    }
    able = set(model.capabilities)
    return row | {
        "name": _key(model.name),
        "service": SERVICE,
        "state": "not_loaded",
        "streaming": int(bool(able & {"chat", "completions"})),
        "instructed": int("chat" in able),
        "coding": int("infill" in able),
        "tooling": int("tools" in able),
        "is_mlx": int(model.backend == "mlx"),
        "is_gguf": int(model.path.endswith(".gguf")),
        "capabilities": json_text(model.capabilities),
        "options": json_text(installed.options),
        "sampling": json_text(installed.sampling),
    }


def _stored(row: Row) -> Installed:
    fields: dict[str, object] = {name: row[_COLUMN_OF.get(name, name)] for name in InstalledModel.__struct_fields__}
    fields |= {name: bool(row[name]) for name in _BOOLEANS}
    fields["capabilities"] = _NAMES.decode(str(row["capabilities"]))
    return Installed(
        msgspec.convert(fields, InstalledModel),
        _OPTIONS.decode(str(row["options"])),
        _SAMPLING.decode(str(row["sampling"])),
    )
