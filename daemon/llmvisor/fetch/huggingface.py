"""Models from Hugging Face's hub: huggingface_hub lists the repository, knows the token and tells what is gated.

The bytes go through `download`, as from every source. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and the login of
`hf auth login` are honoured by the library itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import aiohttp
import huggingface_hub
import msgspec
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType] - a bare `dict` in it

from llmvisor import limits as daemon_limits
from llmvisor.fetch import limits
from llmvisor.fetch.download import RemoteFile, Report, download
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.gguf_check import check_gguf
from llmvisor.fetch.hub_problems import hub_problem
from llmvisor.fetch.protocol import Fetched, FetchedFile, FetchProgress, FetchRequest, Unchanged
from llmvisor.fetch.repository import (
    REPOSITORY,
    RepositoryFile,
    Selection,
    git_blob_id,
    is_repository,
    is_sha256,
    select,
    suggested_name,
)
from llmvisor.fetch.staging import STATE_SUFFIX

T = TypeVar("T")

_SOURCE = re.compile(rf"hf:(?P<repository>{REPOSITORY})(?:@(?P<revision>[A-Za-z0-9._/-]{{1,200}}))?(?::(?P<file>.+))?")
_FORM = "hf:ORG/REPO, hf:ORG/REPO:FILE or hf:ORG/REPO:QUANTIZATION"


class HubSource(msgspec.Struct, frozen=True):
    """`hf:org/repo[@revision][:file]`, taken apart."""

    repository: str
    revision: str | None
    file: str | None

    def of(self, main: str) -> str:
        """The source as it can be fetched again, with the file that was chosen."""
        pinned = f"hf:{self.repository}" + (f"@{self.revision}" if self.revision else "")
        return f"{pinned}:{main}" if main else pinned


class _Listing(msgspec.Struct, frozen=True):
    commit: str
    files: tuple[RepositoryFile, ...]


def parse_source(source: str) -> HubSource:
    """Raises `FetchProblem` (`invalid`) for what is no repository's name."""
    found = _SOURCE.fullmatch(source) if len(source) <= daemon_limits.source_chars_max else None
    file = found["file"] if found else None
    if found is None or not is_repository(found["repository"]) or (file is not None and not file.isprintable()):
        raise FetchProblem("invalid", f"{source[:100]!a} names no repository", hint=f"write {_FORM}")
    return HubSource(found["repository"], found["revision"], file)


async def fetch(request: FetchRequest, *, session: aiohttp.ClientSession, report: Report) -> Fetched | Unchanged:
    """Bring a repository's model into the staging folder. Raises `FetchProblem`."""
    source = parse_source(request.source)
    report(FetchProgress("resolving"))
    hub = _Hub(request.huggingface_endpoint, source)
    listing = await hub.ask(hub.listing)
    chosen = select(
        listing.files, file=source.file, quantization_asked=request.quantization, code=request.trust_remote_code
    )
    if chosen.revision == request.known_revision:
        return Unchanged(chosen.revision)
    _check_listing(chosen)
    # A gated repository may be listed by anybody; its files tell who may have them.
    await hub.ask(lambda: hub.check_access(listing.commit, chosen.files[0]))
    remote = [hub.remote_file(listing.commit, file) for file in chosen.files]
    staging = Path(request.staging)
    fetched = await download(session, remote, staging, request=request, report=report)
    await asyncio.to_thread(_verify, staging, chosen)
    return _fetched(source, chosen, fetched)


class _Hub:
    """One repository, through huggingface_hub. `ask` runs what blocks in a thread."""

    def __init__(self, endpoint: str | None, source: HubSource) -> None:
        self._api = huggingface_hub.HfApi(endpoint=endpoint, library_name="llmvisor")
        self._endpoint = endpoint or constants.ENDPOINT
        self._source = source

    async def ask(self, question: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(question)
        except FetchProblem:
            raise
        except Exception as error:  # noqa: BLE001 - what a hub answers becomes Python's own errors as well
            self._fail(error)

    def listing(self) -> _Listing:
        info = self._api.model_info(
            self._source.repository,
            revision=self._source.revision,
            files_metadata=True,
            timeout=limits.registry_seconds_max,
        )
        siblings = info.siblings or []
        if len(siblings) > limits.repository_files_max:
            raise FetchProblem("refused", f"the repository has {len(siblings)} files", hint="choose another one")
        files = tuple(
            RepositoryFile(one.rfilename, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
            for one in siblings
        )
        return _Listing(info.sha or "main", files)

    def check_access(self, commit: str, file: RepositoryFile) -> None:
        """Whether the file may be had, and is what the listing says. Raises the hub's own errors, `FetchProblem`."""
        told = huggingface_hub.get_hf_file_metadata(  # pyright: ignore[reportUnknownMemberType] - a bare `dict` in it
            self._url(commit, file.path), timeout=limits.registry_seconds_max, endpoint=self._endpoint
        )
        # A mirror may name contents in its own way; their checksum is taken in any case.
        checksum = told.etag if told.etag is not None and is_sha256(told.etag) else None
        if (told.size is not None and file.size not in {None, told.size}) or (
            checksum is not None and file.sha256 not in {None, checksum}
        ):
            raise FetchProblem(
                "invalid",
                f"the hub says two different things of {file.path}: {file.size} and {told.size} bytes",
                hint="try again later; the repository may just have changed",
            )

    def remote_file(self, commit: str, file: RepositoryFile) -> RemoteFile:
        token = build_hf_headers().get("authorization")
        return RemoteFile(
            self._url(commit, file.path),
            file.path,
            size=file.size,
            sha256=file.sha256,
            headers={"Authorization": token} if token else {},
            etag=file.digest,
        )

    def _url(self, commit: str, path: str) -> str:
        return huggingface_hub.hf_hub_url(self._source.repository, path, revision=commit, endpoint=self._endpoint)

    def _fail(self, error: Exception) -> NoReturn:
        raise hub_problem(error, self._source.repository, self._endpoint) from error


def _check_listing(chosen: Selection) -> None:
    for file in chosen.files:
        if file.size is not None and not 0 <= file.size <= limits.model_file_bytes_max:
            message = f"{file.path} is said to have {file.size} bytes"
            raise FetchProblem("refused", message, hint="choose another repository")
        if file.sha256 is not None and not is_sha256(file.sha256):
            message = f"the hub lists a checksum of {file.path} that is none: {file.sha256[:80]!a}"
            raise FetchProblem("invalid", message, hint="check that HF_ENDPOINT is a hub")


def _verify(staging: Path, chosen: Selection) -> None:
    """Small files are checked by git's own checksum, and a GGUF by its header. Blocks on the disk."""
    for file in chosen.files:
        if file.sha256 is None and file.blob_id is not None and (file.size or 0) <= limits.git_blob_bytes_max:
            _check_blob(staging / file.path, file)
    if chosen.main:
        check_gguf(staging, chosen.main)


def _check_blob(path: Path, file: RepositoryFile) -> None:
    try:
        if git_blob_id(path.read_bytes()) == file.blob_id:
            return
        path.unlink()
        path.with_name(path.name + STATE_SUFFIX).unlink(missing_ok=True)
    except OSError as error:
        raise disk_problem(error, str(path)) from error
    message = f"{file.path} came with another content than the hub lists; it was not kept"
    raise FetchProblem("wrong_checksum", message, hint="try again, or choose another repository")


def _fetched(source: HubSource, chosen: Selection, files: list[FetchedFile]) -> Fetched:
    options = {"mmproj": chosen.projector} if chosen.projector else {}
    return Fetched(
        source=source.of(chosen.main),
        revision=chosen.revision,
        files=files,
        main=chosen.main,
        name=suggested_name(source.repository),
        publisher=source.repository.partition("/")[0],
        options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in options.items()},
    )
