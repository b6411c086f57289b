"""Configuration for tests: a folder with a file, and an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from llmvisor.config.layers import LoadedConfig, load_config
from llmvisor.errors import ConfigError

FILE_NAME = "config.yaml"


class Configured:
    """A working directory, in which configuration is loaded as a start there would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ: dict[str, str] = {"HOME": str(folder / "home")}

    def write(self, text: str, name: str = FILE_NAME) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def load(
        self,
        text: str | None = None,
        *,
        flags: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        **variables: str,
    ) -> LoadedConfig:
        """The configuration with this file's text (None = the files that are there) and these variables."""
        if text is not None:
            self.write(text)
        together = self.environ | dict(environ or {}) | variables
        return load_config(flags=flags or {}, environ=together, cwd=self.folder)

    def problems(
        self,
        text: str | None = None,
        *,
        flags: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        **variables: str,
    ) -> list[str]:
        """What is wrong with it; fails where nothing is."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, flags=flags, environ=environ, **variables)
        return caught.value.problems
