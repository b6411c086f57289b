"""What loads of each model took, by backend and options: what a later load will take is guessed from it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from llmvisor.store import limits
from llmvisor.store.rows import Row, change, found
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database

_TABLE = "load_measures"


class LoadKey(msgspec.Struct, frozen=True):
    """What a load's measures depend on."""

    model: str
    backend: str
    options_sha256: str
    """Of the model's path and all options that its worker is given: see `supervision.measured.options_sha256`."""


class LoadMeasure(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    backend: str
    options_sha256: str
    loads: int
    """How many have been measured."""
    load_seconds: float
    """Of the last one."""
    load_seconds_max: float
    rss_bytes_peak: int
    """The most that a worker has taken, over all of them; 0 while unknown."""
    measured_at: str


class MeasureRows:
    """The table `load_measures`. Every call raises `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add_load(self, key: LoadKey, *, load_seconds: float, rss_bytes: int, now: datetime) -> None:
        """A model has been loaded. The row measured longest ago goes where there are too many."""
        values = [*msgspec.structs.astuple(key), load_seconds, load_seconds, rss_bytes, now.isoformat()]

        def work(database: Database) -> None:
            database.conn.execute(
                "INSERT INTO load_measures (model, backend, options_sha256, loads, load_seconds, load_seconds_max, "
                "rss_bytes_peak, measured_at) VALUES (?, ?, ?, 1, ?, ?, ?, ?) "
                "ON CONFLICT (model, backend, options_sha256) DO UPDATE SET "
                "loads = loads + 1, load_seconds = excluded.load_seconds, "
                "load_seconds_max = max(load_seconds_max, excluded.load_seconds), "
                "rss_bytes_peak = max(rss_bytes_peak, excluded.rss_bytes_peak), measured_at = excluded.measured_at",
                values,
            )
            database.conn.execute(
                "DELETE FROM load_measures WHERE rowid IN "
                "(SELECT rowid FROM load_measures ORDER BY measured_at DESC LIMIT -1 OFFSET ?)",
                [limits.load_measures_max],
            )

        await self._store.run(work)

    async def raise_peak(self, key: LoadKey, rss_bytes: int) -> None:
        """A worker has taken more than any before it with these options."""
        values = [rss_bytes, *msgspec.structs.astuple(key)]
        sql = (
            "UPDATE load_measures SET rss_bytes_peak = max(rss_bytes_peak, ?) "
            "WHERE model = ? AND backend = ? AND options_sha256 = ?"
        )
        await self._store.run(change(sql, values))

    async def all(self) -> list[LoadMeasure]:
        sql = "SELECT * FROM load_measures ORDER BY model, backend, options_sha256"
        return await self._store.read(lambda database: list(found(database, _TABLE, _measure, sql)))


def _measure(row: Row) -> LoadMeasure:
    return msgspec.convert({name: row[name] for name in LoadMeasure.__struct_fields__}, LoadMeasure)
