"""Writes what changes among the installed models into the store, and again what it could not write."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.models.index import Index
from llmvisor.models.installed import Installed

_log = get_logger(__name__)


class InstalledRows(Protocol):
    """The rows of `llm_models`; see `store.models.ModelRows`. All raise `StoreUnavailable`."""

    async def all(self) -> list[Installed]: ...

    async def put(self, models: Sequence[Installed]) -> None: ...

    async def remove(self, names: Sequence[str]) -> None: ...


class RowWriter:
    """A store that cannot be written holds nothing up: the folders have it all."""

    def __init__(self, rows: InstalledRows, index: Index) -> None:
        self._rows = rows
        self._index = index
        self._changed: set[str] = set()

    async def save(self, *names: str) -> None:
        """Write these models as they are now, and those that could not be written before."""
        await self.save_all(names)

    async def save_all(self, names: Collection[str]) -> None:
        self._changed.update(names)
        changed = sorted(self._changed)
        there = [installed for name in changed if (installed := self._index.get(name)) is not None]
        absent = [name for name in changed if self._index.get(name) is None]
        try:
            if absent:
                await self._rows.remove(absent)
            if there:
                await self._rows.put(there)
        except StoreUnavailable as error:
            _log.warning("installed models could not be written down; their folders have it all", reason=str(error))
        else:
            self._changed.difference_update(changed)
