"""The installed models in memory: what is asked with every request and every list."""

from __future__ import annotations

from collections.abc import Iterable

from llmvisor.models.installed import Installed


class Index:
    """Models by name, and those whose files are gone."""

    def __init__(self) -> None:
        self.version = 0
        """Another one after every change."""
        self._models: dict[str, Installed] = {}
        self._folded: dict[str, str] = {}
        self._gone: set[str] = set()

    def all(self) -> Iterable[Installed]:
        return self._models.values()

    def get(self, name: str) -> Installed | None:
        return self._models.get(name)

    def taken_by(self, name: str) -> Installed | None:
        """The model that has this name, whatever its capitals: file systems may not tell them apart."""
        return self._models.get(self._folded.get(name.casefold(), ""))

    def is_gone(self, name: str) -> bool:
        return name in self._gone

    def put(self, installed: Installed, *, gone: bool = False) -> None:
        name = installed.model.name
        self._models[name] = installed
        self._folded[name.casefold()] = name
        self.mark(name, gone=gone)

    def mark(self, name: str, *, gone: bool) -> None:
        """Its files are gone, or are there."""
        self.version += 1
        if gone:
            self._gone.add(name)
        else:
            self._gone.discard(name)

    def remove(self, name: str) -> None:
        self.version += 1
        del self._models[name]
        del self._folded[name.casefold()]
        self._gone.discard(name)
