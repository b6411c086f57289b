"""The files that an import was made from, as its manifest names them."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from llmvisor.fetch.protocol import Fetched

FILE_PREFIX = "file:"


def originals(fetched: Fetched) -> dict[str, Path]:
    """Where each file came from, by its path in the model's folder; nothing for what was not imported."""
    if not fetched.source.startswith(FILE_PREFIX):
        return {}
    root = Path(fetched.source.removeprefix(FILE_PREFIX))
    if fetched.main and root.name == fetched.main:
        root = root.parent
    return {file.path: root / file.path for file in fetched.files}


def remove_originals(fetched: Fetched, folder: Path) -> None:
    """End a move: remove the originals of what now lies in `folder`, but for those that were changed since.

    Raises nothing: what cannot be removed is still a copy. Blocks on the disk.
    """
    for path, original in originals(fetched).items():
        with suppress(OSError):
            installed, there = (folder / path).lstat(), original.lstat()
            same = (installed.st_size, installed.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
            if same and stat.S_ISREG(there.st_mode):
                original.unlink()
