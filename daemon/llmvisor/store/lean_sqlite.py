"""sqlite-utils without the libraries for tables of numbers that it imports wherever they are installed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from types import ModuleType

    from sqlite_utils import Database

_HIDDEN = ("numpy", "pandas")


def make_database(connection: sqlite3.Connection) -> Database:
    """sqlite-utils around a connection. Its plugins are left out: they are any package's code, run in the daemon."""
    hidden: dict[str, ModuleType | None] = {}
    if "sqlite_utils" not in sys.modules:
        hidden = {name: sys.modules.get(name) for name in _HIDDEN}
        sys.modules.update(dict.fromkeys(_HIDDEN))  # type: ignore[arg-type] # None makes an import fail
    try:
        from sqlite_utils import Database  # noqa: PLC0415 - as late as this, and in the store's own thread
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return Database(connection, execute_plugins=False, recursive_triggers=False)
