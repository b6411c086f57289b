"""Bytes from URLs into the staging folder: whole, checked and synced, or a `*.partial` for the next try."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from llmvisor import __version__
from llmvisor.clock import Clock, SystemClock
from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem, disk_problem, gravest
from llmvisor.fetch.pace import Throttle
from llmvisor.fetch.partial import PartialFile
from llmvisor.fetch.protocol import FetchedFile, FetchRequest
from llmvisor.fetch.staging import check_space, checked_path, digest
from llmvisor.fetch.tally import Report, Tally
from llmvisor.fetch.transfer import RemoteFile, Surroundings, Transfer

__all__ = ["RemoteFile", "Report", "download", "open_session"]


def open_session() -> aiohttp.ClientSession:
    """A session for `download`: no decompression, proxies of the environment, no bound on the whole, one on silence."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=limits.fetch_connect_seconds_max, sock_read=limits.fetch_silence_seconds_max
    )
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"llmvisor/{__version__}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        timeout=timeout,
        trust_env=True,
        read_bufsize=limits.fetch_chunk_bytes,
    )


async def download(
    session: aiohttp.ClientSession,
    files: Sequence[RemoteFile],
    staging: Path,
    *,
    request: FetchRequest,
    report: Report,
) -> list[FetchedFile]:
    """Fetch these files, and go on with what an earlier try left. `session` is one of `open_session`.

    Of `request` the bounds count: `connections` and `bytes_per_second_max`. Raises `FetchProblem`.
    """
    _check(files)
    clock = SystemClock()
    around = Surroundings(
        session=session,
        connections=max(1, request.connections),
        throttle=Throttle(request.bytes_per_second_max),
        tally=Tally(report, {file.path: file.size for file in files}),
        clock=clock,
        random=random.Random().random,  # noqa: S311 - waits, not secrets
    )
    partials: list[PartialFile] = []
    try:
        partials.extend(_open(file, staging, clock) for file in files)
        check_space(staging, sum(map(_bytes_missing, files, partials)))
        return await _fetch_all(files, partials, around)
    except OSError as error:
        raise disk_problem(error, str(staging)) from error
    finally:
        for partial in partials:
            partial.close()


async def _fetch_all(
    files: Sequence[RemoteFile], partials: Sequence[PartialFile], around: Surroundings
) -> list[FetchedFile]:
    """Small files side by side, since each is little more than the wait for it; then the large ones, each alone."""
    fetched: dict[str, FetchedFile] = {}
    places = asyncio.Semaphore(around.connections)

    async def fetch(file: RemoteFile, partial: PartialFile) -> None:
        async with places:
            fetched[file.path] = await _fetch(file, partial, around)

    pairs = list(zip(files, partials, strict=True))
    small = [pair for pair in pairs if pair[0].size is not None and pair[0].size <= limits.fetch_piece_bytes]
    try:
        async with asyncio.TaskGroup() as group:
            for pair in small:
                group.create_task(fetch(*pair), name=pair[0].path)
    except BaseExceptionGroup as errors:
        raise gravest(errors) from None
    for pair in pairs:
        if pair[0].path not in fetched:
            await fetch(*pair)
    return [fetched[file.path] for file in files]


def _check(files: Sequence[RemoteFile]) -> None:
    if len(files) > limits.fetch_files_max:
        message = f"the model has {len(files)} files, and may have {limits.fetch_files_max}"
        raise FetchProblem("refused", message, hint="name one file of it")
    if len({checked_path(file.path).casefold() for file in files}) < len(files):
        message = "two files have one name, but for upper and lower case"
        raise FetchProblem("invalid", message, hint="tell the model's publisher")


def _open(file: RemoteFile, staging: Path, clock: Clock) -> PartialFile:
    partial = PartialFile.open(staging / file.path, _identity(file), clock.monotonic)
    if file.size is not None and partial.state.size not in {None, file.size}:
        partial.clear()
    if file.size == 0:
        partial.state.size = 0
    return partial


def _identity(file: RemoteFile) -> str:
    if file.sha256 is not None:
        return f"sha256:{file.sha256}"
    return f"etag:{file.etag}" if file.etag is not None else f"url:{file.url.partition('?')[0]}"


def _bytes_missing(file: RemoteFile, partial: PartialFile) -> int:
    if partial.finished() is not None:
        return 0
    return max(0, (partial.state.size or file.size or 0) - partial.bytes_there)


async def _fetch(file: RemoteFile, partial: PartialFile, around: Surroundings) -> FetchedFile:
    """Bring one file under its name. What an earlier try left and has another checksum is fetched once more."""
    sha256 = partial.finished()
    while sha256 is None:
        resumed = partial.resumed
        around.tally.begin(file.path, "downloading")
        around.tally.there(file.path, partial.bytes_there)
        if not partial.is_whole:
            await Transfer(file, partial, around).run()
        sha256 = await _verify(file, partial, around.tally, again=resumed)
    size = partial.state.size or 0
    around.tally.end(file.path, size)
    return FetchedFile(file.path, size, sha256)


async def _verify(file: RemoteFile, partial: PartialFile, tally: Tally, *, again: bool) -> str | None:
    """The checksum of a file that is whole, and now has its name. None: it is to be fetched again, from the first byte.

    Raises `FetchProblem` (wrong_checksum) where it was fetched in one go, or not `again`.
    """
    tally.begin(file.path, "verifying")
    loop = asyncio.get_running_loop()

    def read(_: int) -> None:
        loop.call_soon_threadsafe(tally.report)

    found = await asyncio.to_thread(digest, partial.content, read)
    if file.sha256 is None or found == file.sha256:
        await asyncio.to_thread(partial.finish, found)
        return found
    partial.clear()
    if again:
        return None
    raise FetchProblem(
        "wrong_checksum",
        f"{file.path} has the checksum {found}, and should have {file.sha256}; nothing of it was kept",
        hint="the download was damaged, or is not the original: try again, or another source",
    )
