"""Models that tests make or fetch once, in a folder outside the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def model_cache() -> Path:
    """`llmvisor/test-models` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "llmvisor" / "test-models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder of this name in the cache; `make` writes it to the path that it is given, where it is absent.

    It appears whole or not at all, and two test runs do not make it twice. Put a version into the name of what a
    program makes, and change it with the program.
    """
    target = model_cache() / name
    if target.exists():
        return target
    with (model_cache() / f".{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
            try:
                make(scratch / name)
                (scratch / name).rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target
