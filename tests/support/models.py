"""Where tests find real weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmvisor.control import paths


def starter_model_path() -> Path:
    """The starter model's GGUF; `make test` fetches it first, so its absence is a failure and not a skip."""
    path = paths.starter_model_path(os.environ)
    if not path.is_file():
        pytest.fail(f"the starter model is not at {path}: run `make model`")
    return path
