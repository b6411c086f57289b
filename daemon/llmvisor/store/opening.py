"""Opening the store's file: is it whole, is it of a version that can be read, and what becomes of it if not.

All of this blocks, and belongs in the store's thread.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmvisor import limits
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store import limits as store_limits
from llmvisor.store.lean_sqlite import make_database
from llmvisor.store.migrations import MIGRATIONS, REQUIRED, Migration

if TYPE_CHECKING:
    from sqlite_utils import Database

APPLICATION_ID = int.from_bytes(b"llmv")
"""What `file` and others know an SQLite file by."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
"""Result codes of a file that cannot be what it should be. `SQLITE_ERROR`: its schema makes no sense."""
_STEP_FAULTS = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_MISUSE}
"""Result codes of a step that does not go with what is in the file: a mistake of ours, and no damage."""
_BESIDE = ("-wal", "-shm")
_log = get_logger(__name__)


class _DamagedFile(Exception):
    """The file is not what it should be, and why."""


def open_database(path: Path, *, now: datetime, migrations: tuple[Migration, ...], lock_seconds: float) -> Database:
    """The file, checked and of this version; a new one where there is none, or the one there is damaged.

    A damaged one is kept beside it under a dated name. Raises `StoreUnavailable` for a newer version, and the errors
    of sqlite3 and OSError for what may pass.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return _opened(path, now, migrations, lock_seconds)
    except _DamagedFile as damage:
        kept = _set_aside(path, now)
        _log.error(
            "the store was damaged: it is kept under another name, and a new one begun",
            file=str(path),
            kept=str(kept),
            reason=str(damage),
        )
    try:
        return _opened(path, now, migrations, lock_seconds)
    except _DamagedFile as damage:
        message = f"a new store at {path} is damaged at once: {damage}"
        raise StoreUnavailable(message, hint="is the disk well?") from None


def is_damage(error: BaseException, codes: Collection[int]) -> bool:
    """Whether an error says that the file is not what it was, by these result codes."""
    if isinstance(error, UnicodeDecodeError):
        return True  # the driver's, of an SQLite message that quotes the damaged place
    return isinstance(error, sqlite3.DatabaseError) and primary_code(error) in codes


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its details; None for an error of the driver itself."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _opened(path: Path, now: datetime, migrations: tuple[Migration, ...], lock_seconds: float) -> Database:
    new = _check_header(path)
    connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
    try:
        if new:
            path.chmod(0o600)  # what was asked of whom is nobody else's business
        # Damage within a text costs these characters, not the row.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        # As https://www.sqlite.org/security.html has it for files that something may have happened to.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        database = make_database(connection)
        _check(database, path, migrations)
        _set_up(connection)
        _migrate(database, path, now, migrations)
        _check_tables(database, migrations)
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException as error:
        connection.close()
        if is_damage(error, _DAMAGED):
            raise _DamagedFile(str(error)) from None
        raise
    return database


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    # In WAL mode the default would leave the last commits to chance when the power goes.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {store_limits.store_wal_bytes_max}").fetchall()


def _check_header(path: Path) -> bool:
    """Whether a new file will be made. Raises `_DamagedFile` for what SQLite would take for something else.

    The fields are those of https://www.sqlite.org/fileformat2.html#the_database_header.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return True
    if not size:
        return True
    page_bytes = int.from_bytes(header[16:18])
    sound = (
        len(header) == 100
        and header.startswith(b"SQLite format 3\0")
        and (page_bytes == 1 or (page_bytes >= 512 and page_bytes.bit_count() == 1))
        and {header[18], header[19]} <= {1, 2}
        and header[21:24] == bytes((64, 32, 32))
        and int.from_bytes(header[44:48]) <= 4
        and int.from_bytes(header[56:60]) <= 3
    )
    if not sound:
        raise _DamagedFile("its header is not that of an SQLite file")
    return False


def _check(database: Database, path: Path, migrations: tuple[Migration, ...]) -> None:
    """Raises `_DamagedFile`, or `StoreUnavailable` for a newer version."""
    version = _version(database)
    if not 0 <= version <= len(migrations) + store_limits.store_versions_ahead_max:
        raise _DamagedFile(f"its version, {version}, makes no sense")
    if version > len(migrations):
        raise StoreUnavailable(
            f"the store {path} is of version {version}, made by a newer llmvisor; this one reads up to version "
            f"{len(migrations)}",
            hint=_way_back(path),
        )
    thorough = path.stat().st_size <= store_limits.store_full_check_bytes_max
    pragma = "integrity_check" if thorough else "quick_check"
    problems = [
        str(row[0]) for row in database.conn.execute(f"PRAGMA {pragma}({store_limits.store_check_problems_max})")
    ]
    if problems != ["ok"]:
        raise _DamagedFile("; ".join(problems)[: limits.problem_chars_max])
    if version == 0 and database.table_names():
        raise _DamagedFile("it is an SQLite file, and not one of llmvisor's")


def _way_back(path: Path) -> str:
    copies = _kept(path, "before")
    begin = f"or move {path.name} away to begin a new one"
    if copies:
        return f"install the newer llmvisor again, put its copy from before, {copies[-1].name}, in its place, {begin}"
    return f"install the newer llmvisor again, {begin}"


def _version(database: Database) -> int:
    return int(database.conn.execute("PRAGMA user_version").fetchone()[0])


def _migrate(database: Database, path: Path, now: datetime, migrations: tuple[Migration, ...]) -> None:
    """All steps that are missing, or none."""
    version = _version(database)
    if version >= len(migrations):
        return
    if version:
        copy = _copy(database.conn, path, version, now)
        _log.info("the store is brought to this version", was=version, now=len(migrations), copy=str(copy))
    database.conn.execute("BEGIN IMMEDIATE")
    try:
        for step in migrations[version:]:
            step(database)
        database.conn.execute(f"PRAGMA user_version = {len(migrations)}")
        database.conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.conn.execute("COMMIT")
    except BaseException as error:
        if database.conn.in_transaction:
            database.conn.execute("ROLLBACK")
        if isinstance(error, sqlite3.DatabaseError) and primary_code(error) not in _STEP_FAULTS:
            raise
        if not isinstance(error, Exception):
            raise
        _log.error("a step to this version of the store failed", exc_info=error)
        raise StoreUnavailable(
            f"the store {path} could not be brought to version {len(migrations)}: {error}",
            hint="nothing of it was changed: go back to the llmvisor before, and report this",
        ) from error


def _check_tables(database: Database, migrations: tuple[Migration, ...]) -> None:
    if migrations is not MIGRATIONS:
        return
    for table, columns in REQUIRED.items():
        missing = columns - set(database.table(table).columns_dict)
        if missing:
            raise _DamagedFile(f"its table {table} lacks {', '.join(sorted(missing))}")


def _copy(connection: sqlite3.Connection, path: Path, version: int, now: datetime) -> Path:
    """The whole file as it is, under a dated name, on the disk."""
    target = path.with_name(f"{path.stem}.before-{_stamp(now)}.v{version}{path.suffix}")
    unfinished = target.with_name(f"{target.name}.partial")
    _remove(path.parent.glob(f"{path.stem}.before-*.partial"))  # of a daemon that was killed
    try:
        with closing(sqlite3.connect(unfinished)) as copy:
            connection.backup(copy)
        unfinished.chmod(0o600)
        sync(unfinished)
        unfinished.replace(target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync(target.parent)
    _remove(_kept(path, "before")[: -store_limits.store_copies_kept_max])
    return target


def _set_aside(path: Path, now: datetime) -> Path:
    """Give the file another name, and its log with it. The log goes first: it must never meet a new file."""
    kept = path.with_name(f"{path.stem}.damaged-{_stamp(now)}{path.suffix}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.damaged-{_stamp(now)}-{number}{path.suffix}")
    for end in _BESIDE:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{kept}{end}")
    path.replace(kept)
    sync(path.parent)
    for old in _kept(path, "damaged")[: -store_limits.store_damaged_files_kept_max]:
        _remove([old, *(old.with_name(old.name + end) for end in _BESIDE)])
    return kept


def _kept(path: Path, why: str) -> list[Path]:
    """The files set aside for this reason, the oldest first: their names have the time in them."""
    return sorted(path.parent.glob(f"{path.stem}.{why}-*{path.suffix}"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _stamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H-%M-%SZ")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
