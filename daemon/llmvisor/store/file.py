"""The store's file while it is in use: transactions, what their errors mean, and opening it again. Blocks."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmvisor.clock import Clock
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store import limits
from llmvisor.store.migrations import Migration
from llmvisor.store.opening import is_damage, open_database, primary_code
from llmvisor.store.rows import change

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_STALE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR}
"""What an open file may go on with although its disk is well again: then it has to be opened anew."""
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_log = get_logger(__name__)


class StoreFile:
    """Opened when first needed, and again where it has to be. Everything raises `StoreUnavailable` where it cannot."""

    def __init__(self, path: Path, clock: Clock, migrations: tuple[Migration, ...]) -> None:
        self._path = path
        self._clock = clock
        self._migrations = migrations
        self._database: Database | None = None
        self._identity: tuple[int, int] | None = None
        self._lock_fd: int | None = None
        self._locked = False

    def open(self) -> Database:
        """The file, opened unless it is; one that was removed or replaced meanwhile is opened anew."""
        if self._database is not None and self._identity == _identity(self._path):
            return self._database
        if self._database is not None:
            _log.error("the store's file was taken away; beginning with what is there now", file=str(self._path))
            self.close()
        try:
            self._hold()
            self._database = open_database(
                self._path, now=self._clock.now(), migrations=self._migrations, lock_seconds=self._lock_seconds()
            )
        except (sqlite3.DatabaseError, OSError) as error:
            raise (self._unavailable(error) or self._bug(error)) from error
        except StoreUnavailable:
            raise
        except Exception as error:
            raise self._bug(error) from error
        self._identity = _identity(self._path)
        return self._database

    def transact(self, work: Callable[[Database], T], *, write: bool) -> T:
        """What `work` gives. Where anything is raised, nothing of it has been written."""
        database = self.open()
        connection = database.conn
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            value = work(database)
            connection.execute("COMMIT")
        except BaseException as error:
            _roll_back(connection)
            if is_damage(error, _DAMAGED):
                self.close()  # opened again it is checked as a whole, and set aside if need be
                raise StoreUnavailable(f"the store {self._path} is damaged: {error}", hint="it is looked at") from error
            if isinstance(error, sqlite3.DatabaseError) and (unavailable := self._unavailable(error)) is not None:
                if primary_code(error) in _STALE:
                    self.close()
                raise unavailable from error
            raise
        if write and self._locked:
            self._locked = False
            connection.execute(f"PRAGMA busy_timeout = {self._lock_seconds() * 1000:.0f}").fetchall()
        return value

    def probe(self) -> None:
        """Write as much as a few rows take, to see whether that is possible."""

        def work(database: Database) -> None:
            database.conn.execute("DELETE FROM write_tests")
            database.conn.execute("INSERT INTO write_tests VALUES (zeroblob(?))", [limits.store_probe_bytes])

        self.transact(work, write=True)
        self.transact(change("DELETE FROM write_tests", []), write=True)

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.conn.close()
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    def _hold(self) -> None:
        """The right to write the file, against another daemon with the same folder. Raises BlockingIOError."""
        if self._lock_fd is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise
        except OSError as error:
            # Some network folders know no locks; then it is for the person to give each daemon its own.
            _log.debug("the store's folder has no locks", file=str(self._path), reason=error.strerror)
        self._lock_fd = fd

    def _lock_seconds(self) -> float:
        return limits.store_lock_degraded_seconds_max if self._locked else limits.store_lock_seconds_max

    def _bug(self, error: Exception) -> StoreUnavailable:
        _log.error("the store could not be opened, by a mistake of ours", exc_info=error)
        return StoreUnavailable(f"the store {self._path} could not be opened: {error!r}", hint="the log has more")

    def _unavailable(self, error: sqlite3.DatabaseError | OSError) -> StoreUnavailable | None:
        """What an error means for whoever asked; None where it is a mistake of ours."""
        path = self._path
        if isinstance(error, BlockingIOError):
            return StoreUnavailable(f"another llmvisor uses the store {path}", hint="give each its own storage.dir")
        if isinstance(error, OSError):
            return StoreUnavailable(f"the store {path} cannot be opened: {error.strerror}", hint="see storage.dir")
        code = primary_code(error)
        if code in _LOCKED:
            self._locked = True
            if self._database is not None:
                self._database.conn.execute(f"PRAGMA busy_timeout = {self._lock_seconds() * 1000:.0f}").fetchall()
            return StoreUnavailable(
                f"the store {path} is locked by another process", hint=f"`fuser {path}` tells by which"
            )
        return _PASSING[code](path, error) if code in _PASSING else None


def _full(path: Path, _error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the disk of {path} is full", hint="free some space; the store then goes on by itself")


def _io_error(path: Path, error: sqlite3.Error) -> StoreUnavailable:
    name: str = getattr(error, "sqlite_errorname", "")
    return StoreUnavailable(
        f"the disk of {path} fails: {error} ({name})", hint="look at the disk, its quota and `dmesg`"
    )


def _read_only(path: Path, _error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the store {path} cannot be written", hint="its owner and mode may have changed")


def _cannot_open(path: Path, error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the store {path} cannot be opened: {error}", hint="see storage.dir")


_PASSING: dict[int | None, Callable[[Path, sqlite3.Error], StoreUnavailable]] = {
    sqlite3.SQLITE_FULL: _full,
    sqlite3.SQLITE_IOERR: _io_error,
    sqlite3.SQLITE_READONLY: _read_only,
    sqlite3.SQLITE_CANTOPEN: _cannot_open,
    sqlite3.SQLITE_PERM: _cannot_open,
    sqlite3.SQLITE_AUTH: _cannot_open,
}


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
