"""Where tests find real weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

STARTER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def data_dir() -> Path:
    """The data folder, by the same rules as the daemon's."""
    if explicit := os.environ.get("LLMVISOR_DATA_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "llmvisor"


def starter_model_path() -> Path:
    """The starter model's GGUF; `make test` fetches it first, so its absence is a failure and not a skip."""
    path = data_dir() / "models" / STARTER_FILE
    if not path.is_file():
        pytest.fail(f"the starter model is not at {path}: run `make model`")
    return path
