"""What is done with the files of a model's revision: checked, synced, moved. All of it blocks on the disk."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Fetched
from llmvisor.fetch.staging import sync_folder
from llmvisor.models.manifest import MANIFEST_NAME


def check_whole(fetched: Fetched, staging: Path) -> None:
    """Every file is there, a file, and as long as it should be. Raises `FetchProblem`."""
    if fetched.linked_to is not None:
        return
    for file in fetched.files:
        path = staging / file.path
        try:
            status = path.lstat()
        except OSError:
            raise _not_whole(f"{file.path} is not there") from None
        if not stat.S_ISREG(status.st_mode) or not path.resolve().is_relative_to(staging.resolve()):
            raise _not_whole(f"{file.path} is no regular file")
        if status.st_size != file.size:
            raise _not_whole(f"{file.path} has {status.st_size} bytes, and should have {file.size}")


def _not_whole(what: str) -> FetchProblem:
    return FetchProblem("invalid", f"what was fetched is not whole: {what}", hint="install it again")


def fill(target: Path, staging: Path, names: Iterable[str]) -> None:
    """Put the files of a revision over the same ones that are there, which may be damaged, each in one go."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target / name)
    (staging / MANIFEST_NAME).replace(target / MANIFEST_NAME)
    shutil.rmtree(staging, ignore_errors=True)


def remove_others(staging: Path, names: Collection[str]) -> None:
    """Remove what fetching has left beside the model's own files."""
    for folder, inner, files in os.walk(staging, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path.relative_to(staging).as_posix() not in names:
                path.unlink()
        for name in inner:
            path = Path(folder, name)
            if path.is_symlink():
                path.unlink()
            else:
                with suppress(OSError):  # files of the model lie in it
                    path.rmdir()


def write_whole(path: Path, data: bytes) -> None:
    """A file's new content, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_tree(folder: Path) -> None:
    for each, _, _ in os.walk(folder):
        sync_folder(Path(each))


def sync_renamed(*folders: Path) -> None:
    """Sync folders in which something has been renamed: everybody sees it already, so that it cannot fail any more."""
    for folder in folders:
        with suppress(OSError):
            sync_folder(folder)


def freed_bytes(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
