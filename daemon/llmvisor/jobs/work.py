"""What each type of job does, from its beginning to its end, tried once."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from llmvisor.control.api import InstalledModel, Job, JobParams
from llmvisor.errors import Conflict, NotFound
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.originals import FILE_PREFIX, remove_originals
from llmvisor.fetch.protocol import Fetched, FetchProgress, FetchRequest, Unchanged
from llmvisor.fetch.repository import suggested_name
from llmvisor.models.manifest import MANIFEST_NAME, BadManifestError, decode
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.scheduling.state import State

T = TypeVar("T")
PUBLISHING, DELETING, GOING_BACK = "putting in place", "deleting", "going back"
FINAL = frozenset({PUBLISHING, DELETING, GOING_BACK})
"""The stages in which a job can no longer be cancelled."""
_HUB_PREFIX = "hf:"


class Handle(Protocol):
    """The job that runs, as its work sees it."""

    def update(self, **changes: object) -> object:
        """Change fields of the job."""
        ...

    async def write_down(self) -> None:
        """Return once the job, as it is, is on the disk. Raises an `LlmvisorError` where it cannot be."""
        ...


class Library(Protocol):
    """The part of `models.library.Library` that jobs need."""

    def staging(self, job_id: str) -> Path:
        """The folder of a job's files; made where it is not there. Blocks. Raises `FetchProblem`."""
        ...

    async def publish(
        self, fetched: Fetched, staging: Path, *, name: str, tier: str | None, replace: bool
    ) -> InstalledModel: ...

    async def rollback(self, name: str) -> InstalledModel: ...

    async def delete(self, name: str, *, force: bool) -> int: ...

    def installed(self, name: str) -> InstalledModel | None: ...

    def all(self) -> list[InstalledModel]: ...

    def is_gone(self, name: str) -> bool: ...

    def check_free(self, name: str) -> None: ...

    async def clear_staging(self, jobs: Collection[str]) -> None: ...


class Fetcher(Protocol):
    """See `fetching.FetchRunner`."""

    async def fetch(
        self, request: FetchRequest, *, on_progress: Callable[[FetchProgress], None]
    ) -> Fetched | Unchanged: ...


class Work:
    """Carries out jobs. `runtime` finds a model's runtime (raising `ModelNotFound`)."""

    def __init__(
        self,
        *,
        runtime: Callable[[str], Runtime],
        library: Library,
        fetcher: Fetcher,
        request: Callable[[JobParams, str], FetchRequest],
    ) -> None:
        self._runtime = runtime
        self._library = library
        self._fetcher = fetcher
        self._request = request

    def check(self, job_type: str, params: JobParams) -> None:
        """Raises an `LlmvisorError` for what is about a model that is not there."""
        match job_type:
            case "load" | "unload":
                self._runtime(params.model)
            case "update" | "delete":
                self._installed(params.model)
            case _:
                self._check_new(params)

    def _check_new(self, params: JobParams) -> None:
        """Before gigabytes are fetched for nothing. Raises `Conflict` for what is there already."""
        source = params.source or f"{FILE_PREFIX}{params.path}"
        if params.name is not None or source.startswith(_HUB_PREFIX):
            self._library.check_free(params.name or suggested_name(source.removeprefix(_HUB_PREFIX).partition(":")[0]))
            return
        same = (model.name for model in self._library.all() if model.source == source)
        name = next((name for name in same if not self._library.is_gone(name)), None)
        if name is not None:
            hint = f"`llmctl update {name}` fetches a newer revision, `--name` installs it once more"
            raise Conflict(f"{source} is installed already, as '{name}'", hint=hint)

    async def perform(self, job: Job, handle: Handle) -> None:
        """Do it, and tell `handle` how far it is.

        Raises what goes wrong. Where it is cancelled, it leaves what can be gone on with.
        """
        match job.type:
            case "load":
                await self._load(job.params, handle)
            case "unload":
                await self._unload(job.params, handle)
            case "delete":
                await self._delete(job, handle)
            case "update" if job.params.rollback:
                await self._roll_back(job, handle)
            case "install" | "import" | "update":
                await self._bring(job, handle)

    async def clear_staging(self, kept: Iterable[str]) -> None:
        """Remove what was fetched for other jobs than these."""
        await self._library.clear_staging(frozenset(kept))

    async def adopt(self, forerunner: str, job_id: str) -> None:
        """Go on with what another job has fetched."""
        await asyncio.to_thread(self._adopt, forerunner, job_id)

    async def discard(self, job_id: str) -> None:
        """Remove what a job has brought that nobody will go on with."""
        await asyncio.to_thread(self._remove, job_id)

    # ------------------------------------------------------------------------------------------------ loaded models

    async def _load(self, params: JobParams, handle: Handle) -> None:
        runtime = self._runtime(params.model)
        if params.restart:
            runtime.reset()
            runtime.unload()
            handle.update(stage="unloading")
            await runtime.wait_while(State.DRAINING, State.STOPPING)
        handle.update(stage="loading")
        try:
            await runtime.call(None)
        except asyncio.CancelledError:
            runtime.abandon_load()
            raise

    async def _unload(self, params: JobParams, handle: Handle) -> None:
        runtime = self._runtime(params.model)
        runtime.unload(force=params.force)
        handle.update(stage="draining" if runtime.state is State.DRAINING else "unloading")
        await runtime.wait_while(State.DRAINING, State.STOPPING)

    # ------------------------------------------------------------------------------------------------ installed models

    async def _bring(self, job: Job, handle: Handle) -> None:
        """Fetch into the staging folder, then put in place. After a restart both go on where they were."""
        if (model := self._done_before(job)) is not None:
            await self._end_move(job, model)
            await self.discard(job.id)
            return
        staging = await asyncio.to_thread(self._library.staging, job.id)
        request = msgspec.structs.replace(self._request(job.params, str(staging)), **await self._known(job))
        fetched = await self._fetcher.fetch(request, on_progress=lambda progress: _show(progress, handle))
        if isinstance(fetched, Unchanged):
            await self.discard(job.id)
            handle.update(result=f"{job.params.model} has the newest revision already, {fetched.revision}")
            return
        name = job.params.model if job.type == "update" else job.params.name or fetched.name
        params = msgspec.structs.replace(job.params, model=name)
        handle.update(stage=PUBLISHING, params=params, result=_outcome(name, fetched.revision))
        # Before it happens: after a crash it can be told whether it had happened.
        await handle.write_down()
        await finished(self._publish(job, fetched, staging, name))

    async def _publish(self, job: Job, fetched: Fetched, staging: Path, name: str) -> None:
        tier = job.params.tier or fetched.tier
        replace = job.type == "update"
        model = await self._library.publish(fetched, staging, name=name, tier=tier, replace=replace)
        await self._end_move(job, model)

    async def _end_move(self, job: Job, model: InstalledModel) -> None:
        """The originals go once the model is in place, and no sooner: until then they are all that there is."""
        if job.type == "import" and job.params.mode == "move":
            await asyncio.to_thread(_remove_originals, Path(model.folder))

    async def _roll_back(self, job: Job, handle: Handle) -> None:
        model = self._installed(job.params.model)
        if job.result != _outcome_back(model.name, model.revision):  # else it was done before the restart
            handle.update(stage=GOING_BACK, result=_outcome_back(model.name, model.previous_revision))
            await handle.write_down()
            model = await finished(self._library.rollback(model.name))
        handle.update(result=_outcome_back(model.name, model.revision))

    def _done_before(self, job: Job) -> InstalledModel | None:
        """The model of a job whose daemon was killed after it was in place, and before that was known."""
        model = self._library.installed(job.params.model) if job.result and job.params.model else None
        return model if model is not None and _outcome(model.name, model.revision) == job.result else None

    async def _known(self, job: Job) -> dict[str, str]:
        """What an update knows of its model: files that are gone are fetched again."""
        if job.type != "update":
            return {}
        model = self._installed(job.params.model)
        known = {"source": model.source, "mode": "link" if model.linked else "copy"}
        there = await asyncio.to_thread(os.path.exists, model.path)
        return known | {"known_revision": model.revision} if there else known

    async def _delete(self, job: Job, handle: Handle) -> None:
        params = job.params
        if self._library.installed(params.model) is None:
            # It was there when the job came: the daemon was killed before that was written down.
            handle.update(result="it was gone already")
            return
        handle.update(stage=DELETING)
        freed = await finished(self._library.delete(params.model, force=params.force))
        handle.update(result=f"{freed} bytes are free again", done=freed, total=freed, unit="bytes")

    def _installed(self, name: str) -> InstalledModel:
        model = self._library.installed(name)
        if model is None:
            raise NotFound(f"the model '{name}' is not installed", hint="`llmctl models` lists those that are")
        return model

    def _adopt(self, forerunner: str, job_id: str) -> None:
        with suppress(FetchProblem, OSError):  # it is fetched anew then
            self._library.staging(forerunner).rename(self._library.staging(job_id))

    def _remove(self, job_id: str) -> None:
        with suppress(FetchProblem):  # not even the folder could be made
            shutil.rmtree(self._library.staging(job_id), ignore_errors=True)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is not cut off in the middle where whoever waits is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _remove_originals(folder: Path) -> None:
    with suppress(OSError, BadManifestError):  # what cannot be removed is still a copy
        remove_originals(decode((folder / MANIFEST_NAME).read_bytes()).fetched, folder)


def _outcome(name: str, revision: str) -> str:
    return f"{name} is installed, revision {revision}"


def _outcome_back(name: str, revision: str | None) -> str:
    return f"{name} is at revision {revision} again"


def _show(progress: FetchProgress, handle: Handle) -> None:
    share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0
    handle.update(
        progress=min(1.0, max(0.0, share)),
        stage=progress.stage,
        done=progress.bytes_done,
        total=progress.bytes_total,
        unit="bytes",
    )
