"""Tiny models with BGE's real architectures and file layout, made once by `make_flag_models`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.model_cache import made_once

MAKER = Path(__file__).with_name("make_flag_models.py")
VERSION = 1
"""Change it together with what the maker writes."""


def bge_m3_folder() -> Path:
    """A BGE-M3 of 2 layers: dense, sparse and ColBERT; word overlap makes texts near to each other."""
    return _family() / "tiny-bge-m3"


def reranker_folder() -> Path:
    """A cross-encoder as bge-reranker-v2-m3."""
    return _family() / "tiny-bge-reranker"


def llm_reranker_folder() -> Path:
    """A Llama with random weights: its scores mean nothing, but are the same for whoever computes them."""
    return _family() / "tiny-llm-reranker"


def layerwise_reranker_folder() -> Path:
    """A layerwise MiniCPM with random weights."""
    return _family() / "tiny-layerwise-reranker"


def _family() -> Path:
    return made_once(f"flag-models-{VERSION}", _make)


def _make(folder: Path) -> None:
    # torch stays out of this process: other engines are tested in it.
    subprocess.run([sys.executable, str(MAKER), str(folder)], check=True, timeout=600)
