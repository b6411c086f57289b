"""Where a daemon's configuration comes from: flags, environment and files, read again in the same way at any time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llmvisor.config import paths
from llmvisor.config.layers import LoadedConfig, check_text, find_config_file, load_config, shown_name
from llmvisor.errors import ConfigError

Look = tuple[tuple[str, ...], ...]
"""What the files look like from outside; another one where they may have changed."""


class ConfigSource:
    """`flags` are as `load_config` takes them. Everything here blocks on the disk."""

    def __init__(self, *, flags: Mapping[str, object], environ: Mapping[str, str], cwd: Path) -> None:
        self._flags = flags
        self._environ = environ
        self._cwd = cwd
        self.first_look = self.look()
        """Before anything was read."""

    def load(self) -> LoadedConfig:
        """The configuration as it is now. Raises `ConfigError`."""
        return load_config(flags=self._flags, environ=self._environ, cwd=self._cwd)

    def load_after(self, before: LoadedConfig) -> LoadedConfig:
        """The configuration as it is now, where another one holds: a file that is gone, or sets nothing, is no
        wish to have nothing. Raises `ConfigError`."""
        loaded = self.load()
        if before.file is not None and loaded.file != before.file and not before.file.exists():
            raise ConfigError([f"{shown_name(before.file, self._cwd)}: the file is gone"])
        if loaded.file is not None and loaded.file_is_empty and not before.file_is_empty:
            raise ConfigError([f"{shown_name(loaded.file, self._cwd)}:1: it sets nothing"])
        return loaded

    def check(self, text: str, name: str) -> list[str]:
        """What is wrong with a file's text, as this daemon would read it. Empty = it can be used."""
        return check_text(text, name, environ=self._environ, cwd=self._cwd)

    def places(self) -> list[Path]:
        """Every file that is read, or would be if it were there."""
        named = self._flags.get("config") or self._environ.get("LLMVISOR_CONFIG")
        files = paths.config_candidates(self._environ, self._cwd)
        if named:
            found = find_config_file(named=str(named), environ=self._environ, cwd=self._cwd)
            files = [] if found is None else [found]
        folders = dict.fromkeys([*(file.parent for file in files), self._cwd])
        return [*files, *(folder / ".env" for folder in folders)]

    def look(self) -> Look:
        return tuple(_look(path) for path in self.places())


def _look(path: Path) -> tuple[str, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (str(path), str(error.errno))
    marks = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
    return (str(path), *map(str, marks))
