"""Files of this machine into the staging folder, each read once for its copy and its checksum."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import FetchedFile
from llmvisor.fetch.staging import PARTIAL_SUFFIX, sync_folder

Took = Callable[[int], None]
"""Is told the bytes of each step."""


def checksummed(source: Path, path: str, took: Took) -> FetchedFile:
    """A file that stays where it is. Raises OSError, `FetchProblem` where it changes meanwhile."""
    return _read_through(source, path, None, took)


def copied(source: Path, path: str, staging: Path, took: Took) -> FetchedFile:
    """A copy in the staging folder, synced, with the time of the original. Raises as `checksummed`."""
    target = _target(path, staging)
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        file = _read_through(source, path, fd, took)
        modified = source.stat().st_mtime_ns
        os.utime(fd, ns=(modified, modified))
        os.fsync(fd)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    partial.replace(target)
    sync_folder(target.parent)
    return file


def moved(source: Path, path: str, staging: Path, took: Took) -> FetchedFile:
    """The file itself under a second name where that can be, else a copy: the original stays until all is in place.

    Raises as `checksummed`.
    """
    target = _target(path, staging)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
            raise
        return copied(source, path, staging, took)
    file = checksummed(target, path, took)
    sync_folder(target.parent)
    return file


def _target(path: str, staging: Path) -> Path:
    target = staging / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _read_through(source: Path, path: str, copy_fd: int | None, took: Took) -> FetchedFile:
    """Read a file once, for its checksum and its copy."""
    # A pipe that has taken the file's place would hold an open without O_NONBLOCK for ever.
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = _signature(os.fstat(fd))
        digest = hashlib.sha256()
        size = 0
        # A file that grows as fast as it is read would have no end.
        while size <= before[0] and (chunk := os.read(fd, limits.fetch_chunk_bytes)):
            digest.update(chunk)
            size += len(chunk)
            if copy_fd is not None:
                _write(copy_fd, chunk)
            took(len(chunk))
        if _signature(os.fstat(fd)) != before or size != before[0] or _signature(source.stat()) != before:
            raise FetchProblem("invalid", f"{source} was changed meanwhile", hint="try again once it is complete")
    finally:
        os.close(fd)
    return FetchedFile(path, size, digest.hexdigest())


def _write(fd: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(fd, left) :]


def _signature(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
