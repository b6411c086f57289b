"""Models that lie on this machine already: copied, moved, or only looked at where they stay."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import msgspec

from llmvisor.fetch import copying
from llmvisor.fetch.download import Report
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.originals import FILE_PREFIX
from llmvisor.fetch.protocol import Fetched, FetchedFile, FetchProgress, FetchRequest, Unchanged
from llmvisor.fetch.repository import suggested_name
from llmvisor.fetch.selection import Selection, select
from llmvisor.fetch.staging import check_space
from llmvisor.fetch.tally import Tally

_REVISION_DIGITS = 12
_NUMBERED = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE | re.ASCII)


class Stopped(Exception):
    """Whoever wanted the import is gone."""


async def fetch(request: FetchRequest, *, session: aiohttp.ClientSession, report: Report) -> Fetched | Unchanged:
    """Bring a file or folder into the staging folder, or only look at it (`mode: link`). Raises `FetchProblem`."""
    del session
    stopped = threading.Event()
    report(FetchProgress("resolving"))
    path = await asyncio.to_thread(_resolved, request)
    try:
        return await asyncio.to_thread(_import, path, request, report, stopped)
    except PermissionError as error:
        raise _unreadable(str(error.filename or path)) from error
    except OSError as error:
        raise disk_problem(error, str(error.filename or path)) from error
    finally:
        stopped.set()


def _import(path: Path, request: FetchRequest, report: Report, stopped: threading.Event) -> Fetched | Unchanged:
    """Raises `FetchProblem`, OSError, and `Stopped` where nobody waits for it."""
    chosen = select(path, code=request.trust_remote_code)
    staging = Path(request.staging)
    take = _Take(chosen, report, stopped)
    if request.known_revision is not None:
        known = _revision(take.each("verifying", copying.checksummed))
        if known == request.known_revision:
            return Unchanged(known)
    if request.mode == "link":
        files = take.each("verifying", copying.checksummed)
    else:
        if request.mode == "copy" or path.stat().st_dev != staging.stat().st_dev:
            check_space(staging, take.bytes_total)
        bring = copying.moved if request.mode == "move" else copying.copied
        files = take.each("copying", lambda source, name, took: bring(source, name, staging, took))
    return _fetched(path, chosen, files, linked=request.mode == "link")


class _Take:
    """Goes through the chosen files, and reports how far it is."""

    def __init__(self, chosen: Selection, report: Report, stopped: threading.Event) -> None:
        self._chosen = chosen
        self._report = report
        self._stopped = stopped
        self._sizes = {name: (chosen.root / name).stat().st_size for name in chosen.paths}
        self.bytes_total = sum(self._sizes.values())

    def each(self, stage: str, take: Callable[[Path, str, copying.Took], FetchedFile]) -> list[FetchedFile]:
        tally = Tally(self._report, dict(self._sizes))
        return [self._one(name, stage, take, tally) for name in self._chosen.paths]

    def _one(
        self, name: str, stage: str, take: Callable[[Path, str, copying.Took], FetchedFile], tally: Tally
    ) -> FetchedFile:
        done = 0

        def took(size_bytes: int) -> None:
            nonlocal done
            if self._stopped.is_set():
                raise Stopped
            done += size_bytes
            tally.there(name, done)

        tally.begin(name, stage)
        file = take(self._chosen.root / name, name, took)
        tally.end(name, file.size)
        return file


def _resolved(request: FetchRequest) -> Path:
    """What the source names, with all links on the way to it followed. A file keeps the name that it was called by."""
    path = Path(request.source.removeprefix(FILE_PREFIX))
    if not path.is_absolute() or "\0" in str(path):
        raise FetchProblem("invalid", f"{str(path)[:200]!a} is no absolute path", hint="write file:/the/whole/path")
    try:
        target = path.resolve(strict=True)
        path = target if target.is_dir() else path.parent.resolve() / path.name
    except PermissionError as error:
        raise _unreadable(str(path)) from error
    except (OSError, RuntimeError) as error:
        raise FetchProblem("not_found", f"{path}: there is no such file or folder", hint="check the path") from error
    models = Path(request.staging).resolve().parents[1]
    if request.mode != "copy" and target.is_relative_to(models):
        message = f"{path} lies among the installed models already"
        raise FetchProblem("refused", message, hint="import it with --mode copy")
    return path


def _fetched(path: Path, chosen: Selection, files: Sequence[FetchedFile], *, linked: bool) -> Fetched:
    named_by = path if path.is_dir() else Path(chosen.main)
    options = {"mmproj": chosen.mmproj} if chosen.mmproj else {}
    target = path if path.is_dir() else chosen.root / chosen.main
    return Fetched(
        source=f"{FILE_PREFIX}{target}",
        revision=_revision(files),
        files=list(files),
        main=chosen.main,
        name=_name(named_by.name),
        description=chosen.description,
        options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in options.items()},
        linked_to=str(target) if linked else None,
    )


def _revision(files: Sequence[FetchedFile]) -> str:
    """A single file's own checksum, else that of all names and checksums."""
    if len(files) == 1:
        return files[0].sha256[:_REVISION_DIGITS]
    lines = "\n".join(f"{file.path}\0{file.sha256}" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256(lines.encode()).hexdigest()[:_REVISION_DIGITS]


def _name(file_name: str) -> str:
    """The first part's name without its number."""
    return suggested_name(_NUMBERED.sub(".gguf", file_name))


def _unreadable(path: str) -> FetchProblem:
    return FetchProblem("forbidden", f"{path} may not be read", hint=f"make it readable: chmod -R u+rX {path}")
