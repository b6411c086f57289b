"""The staging folder: which names may lie in it, and how its files are measured and synced."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem, disk_problem

PARTIAL_SUFFIX = ".partial"
STATE_SUFFIX = ".partial.json"


def checked_path(path: str) -> str:
    """A relative path that leads nowhere but into its folder. Raises `FetchProblem` (refused)."""
    if why := _unsafe(path):
        shown = ascii(path[:100])
        raise FetchProblem(
            "refused", f"a file is called {shown}: {why}", hint="nothing was kept; tell the model's publisher"
        )
    return path


def _unsafe(path: str) -> str | None:
    parts = path.split("/")
    if not path or len(path) > limits.fetch_path_chars_max or len(parts) > limits.fetch_path_parts_max:
        return "names have 1 to 1024 characters and few folders"
    if any(part in {"", ".", ".."} for part in parts):
        return "it could lead out of the model's folder"
    if "\\" in path or any(unicodedata.category(sign)[0] == "C" for sign in path):
        return "it has characters that do not belong into a name"
    if any(part.startswith(".") or len(part.encode()) > limits.fetch_name_bytes_max for part in parts):
        return "it is hidden, or too long for a disk"
    if path.endswith((PARTIAL_SUFFIX, STATE_SUFFIX)):
        return "such names are kept for files that are under way"
    return None


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raises `FetchProblem` (no_space) where so many more bytes would not leave the disk some to spare."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_problem(error, str(folder)) from error
    if free < needed_bytes + limits.fetch_spare_bytes:
        lacking_mb = (needed_bytes + limits.fetch_spare_bytes - free) // 1_000_000 + 1
        raise FetchProblem(
            "no_space",
            f"{needed_bytes / 1e6:,.0f} MB are needed in {folder}, and {free / 1e6:,.0f} MB are free",
            hint=f"free {lacking_mb:,} MB (see `llmctl models`), or set storage.dir to another disk",
        )


def digest(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; `progress` is told the bytes of each step. Raises OSError."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(limits.fetch_chunk_bytes):
            found.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return found.hexdigest()


def sync_folder(folder: Path) -> None:
    """Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_file(path: Path) -> bool:
    """Whether it is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
