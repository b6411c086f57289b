"""Between Structs and rows: columns by name, JSON where a column holds more than a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from llmvisor.log import get_logger

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")
Value = str | int | float | bytes | None
Row = Mapping[str, Value]
_INTEGER_MAX = 2**63 - 1
_JSON = msgspec.json.Encoder()
_log = get_logger(__name__)


def json_text(value: object) -> str:
    return _JSON.encode(value).decode()


def put(database: Database, table: str, row: Row, *, key: Sequence[str]) -> None:
    """Write a row, over the one with the same key, which keeps its place."""
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    changes = ", ".join(f"{name} = excluded.{name}" for name in row)
    sql = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"  # noqa: S608
    database.conn.execute(sql, [_storable(value) for value in row.values()])


def _storable(value: Value) -> Value:
    """What SQLite can hold: registries claim sizes of any kind, and names of files need not be UTF-8."""
    if isinstance(value, int):
        return max(-_INTEGER_MAX, min(value, _INTEGER_MAX))
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="replace").decode()
    return value


def change(sql: str, values: Sequence[Value]) -> Callable[[Database], None]:
    """Work that carries out one statement."""

    def work(database: Database) -> None:
        database.conn.execute(sql, values)

    return work


def named(database: Database, sql: str, values: Sequence[Value]) -> Iterator[Row]:
    """What a query finds, by the columns' names."""
    cursor = database.conn.execute(sql, values)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def found(
    database: Database, table: str, decode: Callable[[Row], T], sql: str, values: Sequence[Value] = ()
) -> Iterator[T]:
    """The rows that a query finds. Those that make no sense are left out, and the log tells the first and how many."""
    senseless = 0
    for row in named(database, sql, values):
        try:
            yield decode(row)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            senseless += 1
            if senseless == 1:
                key = str(next(iter(row.values())))
                _log.warning("a row of the store makes no sense", table=table, key=key, reason=str(error))
    if senseless > 1:
        _log.warning("more rows of the store make no sense", table=table, rows=senseless)
