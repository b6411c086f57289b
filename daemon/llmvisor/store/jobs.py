"""Jobs, so that what a person has started survives the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmvisor import limits
from llmvisor.control.api import Job, JobParams
from llmvisor.store.rows import Row, change, found, json_text, put
from llmvisor.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database

_PARAMS = msgspec.json.Decoder(JobParams)
_TABLE = "jobs"
_COLUMN_OF = {"done": "bytes_done", "total": "bytes_total"}
"""Fields of a `Job` whose columns have other names."""
_NOT_KEPT = {"bytes_per_second"}


class SavedJob(msgspec.Struct, frozen=True):
    job: Job
    key: str | None
    """The idempotency key that it was submitted with."""


class JobRows:
    """The table `jobs`. Every call raises `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def save(self, job: Job, key: str | None = None) -> None:
        """Write a job as it is now; on the disk once this returns. The oldest ended ones beyond the bound go."""
        row = _row(job, key)

        def work(database: Database) -> None:
            put(database, _TABLE, row, key=["id"])
            if job.ended_at is not None:
                _trim(database)

        await self._store.run(work)

    async def all(self) -> list[SavedJob]:
        """In the order in which they came."""
        sql = "SELECT * FROM jobs ORDER BY rowid"
        return await self._store.read(lambda database: list(found(database, _TABLE, _saved, sql)))

    async def delete(self, job_id: str) -> None:
        await self._store.run(change("DELETE FROM jobs WHERE id = ?", [job_id]))


def _row(job: Job, key: str | None) -> Row:
    fields = msgspec.structs.asdict(job)
    row = {_COLUMN_OF.get(name, name): value for name, value in fields.items() if name not in _NOT_KEPT}
    return row | {"params": json_text(job.params), "idempotency_key": key}


def _saved(row: Row) -> SavedJob:
    fields: dict[str, object] = {
        name: row[_COLUMN_OF.get(name, name)] for name in Job.__struct_fields__ if name not in _NOT_KEPT
    }
    fields["params"] = _PARAMS.decode(str(row["params"]))
    key = row["idempotency_key"]
    return SavedJob(msgspec.convert(fields, Job), None if key is None else str(key))


def _trim(database: Database) -> None:
    database.conn.execute(
        "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE ended_at IS NOT NULL "
        "ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
        [limits.jobs_ended_kept_max],
    )
