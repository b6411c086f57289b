"""The installed models: an index in memory over the folders of `shelf.py`, which are the truth, and the store's rows.

Rows make a start fast and lists rich. What they lack or have wrong is taken from the folders, so that a store that was
lost, or that could not be written, loses no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec

from llmvisor.clock import Clock
from llmvisor.config.tree import Llm, ModelConfig
from llmvisor.control.api import InstalledModel
from llmvisor.errors import Conflict, LlmvisorError, NotFound, StoreUnavailable
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import Fetched
from llmvisor.log import get_logger
from llmvisor.models import limits
from llmvisor.models.found import Found, take_stock
from llmvisor.models.index import Index
from llmvisor.models.installed import Installed, model_config
from llmvisor.models.manifest import Manifest, check_installed_name, check_tier, fetched_problem
from llmvisor.models.revisions import choose, place, previous_of
from llmvisor.models.row_writer import InstalledRows, RowWriter
from llmvisor.models.shelf import Shelf

_log = get_logger(__name__)


class Runtimes(Protocol):
    """What runs the models; see `supervision.supervisor.Supervisor`."""

    def add(self, name: str, config: ModelConfig, *, type: str) -> None: ...

    def replace(self, name: str, config: ModelConfig, *, type: str) -> None: ...

    def put_installed(self, name: str, config: ModelConfig, *, type: str) -> None:
        """How a model is to run from the next change of the configuration on."""
        ...

    async def remove(self, name: str) -> None: ...

    def in_use(self, name: str, folder: str) -> str | None:
        """Who uses a model, or files of its folder; None for nobody."""
        ...

    def configured_in(self, folder: str) -> str | None:
        """A model of the configuration that has files in this folder."""
        ...


class Library:
    """All installed models. Names are those of folders, and differ in more than capitals."""

    def __init__(self, shelf: Shelf, rows: InstalledRows, runtimes: Runtimes, *, llm: Llm, clock: Clock) -> None:
        self._shelf = shelf
        self._is_ours = False
        self._rows = rows
        self._runtimes = runtimes
        self._llm = llm
        self._clock = clock
        self._index = Index()
        self._writer = RowWriter(rows, self._index)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._settling: dict[str, asyncio.Task[None]] = {}
        self._opened = asyncio.Event()
        self._wait_until: float | None = None

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def version(self) -> int:
        """Another one after every change."""
        return self._index.version

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    async def wait_open(self) -> bool:
        """Wait until the models are known, within a bound for all who wait; whether they are."""
        if self._opened.is_set():
            return True
        now = asyncio.get_running_loop().time()
        if self._wait_until is None:
            self._wait_until = now + limits.installed_wait_seconds_max
        try:
            async with asyncio.timeout_at(max(now, self._wait_until)):
                await self._opened.wait()
        except TimeoutError:
            return False
        return True

    def all(self) -> list[InstalledModel]:
        return [each.model for each in self._index.all()]

    def installed(self, name: str) -> InstalledModel | None:
        """One model, by its very name."""
        found = self._index.get(name)
        return found.model if found is not None else None

    def is_gone(self, name: str) -> bool:
        """Whether the model's files are not where they were put."""
        return self._index.is_gone(name)

    def configure(self, llm: Llm) -> None:
        """What holds for all models is another now: the supervisor is told of each, before its own configuration."""
        if llm != self._llm:
            self._llm = llm
            for installed in self._index.all():
                config = self._config(installed)
                self._runtimes.put_installed(installed.model.name, config, type=installed.model.type)

    # ------------------------------------------------------------------------------------------------ the start

    async def open(self) -> None:
        """Learn what there is, and tell the supervisor. Whatever is wrong is logged, and nothing is lost by it."""
        try:
            rows = await self._rows.all()
        except StoreUnavailable as error:
            _log.warning("installed models are read from their folders", reason=str(error))
            rows = []
        try:
            self._is_ours = await asyncio.to_thread(self._shelf.claim)
            if not self._is_ours:
                _log.warning("another daemon has the same folder of models: nothing is cleaned up in it")
            found = await asyncio.to_thread(take_stock, self._shelf, rows)
            await self._take_in(found)
        except LlmvisorError as error:
            _log.error("installed models cannot be read", reason=str(error))
        finally:
            self._opened.set()

    async def clear_staging(self, jobs: Collection[str]) -> None:
        """Remove what other jobs than these have left, and what was being deleted when the daemon ended."""
        if self._is_ours:
            await asyncio.to_thread(self._shelf.clear, jobs)

    async def _take_in(self, found: Found) -> None:
        for count, installed in enumerate(found.models):
            name = installed.model.name
            try:
                config = self._config(installed)
            except LlmvisorError as error:  # a row that somebody has changed
                found.refused[name] = str(error)
                continue
            self._index.put(installed, gone=name in found.gone)
            self._runtimes.add(name, config, type=installed.model.type)
            if count % limits.installed_slice_models == 0:
                await asyncio.sleep(0)  # others get their turn
        for name in sorted(found.gone):
            _log.warning("the installed model's files are gone", model=name)
        for name, reason in found.refused.items():
            _log.warning("a folder of the installed models cannot be used", model=name, reason=reason)
        if found.healed:
            _log.info("taken in from their folders", models=sorted(found.healed))
        await self._writer.save_all(found.healed | set(found.deleted))
        for name, revision in found.surplus if self._is_ours else ():
            await self._drop_revision(name, revision)

    # ------------------------------------------------------------------------------------------------ changes

    def staging(self, job_id: str) -> Path:
        """The folder of a job's fetch, made where it is not there. Blocks on the disk. Raises `FetchProblem`."""
        return self._shelf.staging(job_id)

    def check_free(self, name: str) -> None:
        """Raises `Conflict` for a name that is taken, and `InvalidRequest` for one that cannot be taken."""
        check_installed_name(name)
        taken = self._index.taken_by(name)
        if taken is not None and (taken.model.name != name or not self._index.is_gone(name)):
            name = taken.model.name
            hint = f"`--name` takes another one, `llmctl update {name}` fetches a newer revision"
            raise Conflict(f"the name '{name}' is taken by {taken.model.source}", param="name", hint=hint)

    async def publish(
        self, fetched: Fetched, staging: Path, *, name: str, tier: str | None = None, replace: bool = False
    ) -> InstalledModel:
        """Put what a fetch has brought under its name; with `replace` as the model's new revision.

        The old revision stays until the new one has loaded once. Raises `InvalidRequest`, `Conflict`, `NotFound`
        (`replace` of what is not there), `FetchProblem` (the disk, or what was fetched, which no backend serves).
        """
        check_tier(tier or fetched.tier)
        check_installed_name(name)
        said = fetched_problem(fetched)
        if said is not None:
            raise FetchProblem("invalid", f"what was fetched cannot be installed: {said}", hint="take another source")
        async with self._lock(name):
            before = self._index.get(name)
            if not replace:
                self.check_free(name)
            else:
                self._known(name)
            return await self._publish(fetched, staging, name, tier, before)

    async def _publish(
        self, fetched: Fetched, staging: Path, name: str, tier: str | None, before: Installed | None
    ) -> InstalledModel:
        now = self._later_than(before)
        old = None if before is None or self._index.is_gone(name) else before.model
        if before is not None and tier in {None, fetched.tier}:
            tier = before.model.tier or tier  # what a person chose stays
        manifest = Manifest(fetched, name, tier or fetched.tier, now, now)
        installed = await asyncio.to_thread(place, self._shelf, manifest, staging)
        previous, unwanted = previous_of(old, fetched.revision)
        model = msgspec.structs.replace(installed.model, previous_revision=previous)
        self._put(msgspec.structs.replace(installed, model=model), new=before is None)
        await self._writer.save(name)
        if unwanted is not None:
            await self._drop_revision(name, unwanted)
        _log.info("installed", model=name, revision=fetched.revision, source=fetched.source)
        return model

    async def rollback(self, name: str) -> InstalledModel:
        """Serve the revision before again. Raises `NotFound`; `Conflict` where there is none any more."""
        async with self._lock(name):
            now = self._known(name)
            before = now.model.previous_revision
            revision = None if before is None else await asyncio.to_thread(self._shelf.revision, name, before)
            if revision is None:
                hint = "the revision before is kept until the new one has loaded once"
                raise Conflict(f"the model '{name}' has no revision to go back to", hint=hint)
            chosen = msgspec.structs.replace(revision.manifest, chosen_at=self._later_than(now))
            installed = await asyncio.to_thread(choose, self._shelf, chosen, revision.folder)
            model = msgspec.structs.replace(installed.model, previous_revision=now.model.revision)
            self._put(msgspec.structs.replace(installed, model=model), new=False)
            await self._writer.save(name)
            return model

    async def delete(self, name: str, *, force: bool = False) -> int:
        """Remove a model, and give the bytes that are free again.

        Raises `NotFound`; `Conflict` where it is in use, unless forced: then what uses it ends.
        """
        async with self._lock(name):
            folder = str(self._shelf.folder / self._known(name).model.name)
            user = self._runtimes.in_use(name, folder)
            if user is not None and not force:
                way = "take it out of the configuration" if self._runtimes.configured_in(folder) else "unload it first"
                raise Conflict(f"the model '{name}' is in use: {user}", hint=f"{way}, or say --force")
            away = await asyncio.to_thread(self._shelf.remove_model, name)
            self._index.remove(name)
            await self._runtimes.remove(name)
            await self._writer.save(name)
            freed = 0 if away is None else await asyncio.to_thread(self._shelf.destroy, away)
            _log.info("deleted", model=name, bytes=freed)
            return freed

    def on_loaded(self, name: str, path: str | None, capabilities: list[str]) -> None:
        """A worker has loaded a model from this path: what it can do is known, and the revision before may go."""
        now = self._index.get(name)
        if now is None or now.model.path != path:
            return
        if self._index.is_gone(name):
            self._index.mark(name, gone=False)
        if not now.model.has_loaded and name not in self._settling:
            task = asyncio.create_task(self._settle(name, now.model.revision, capabilities), name=f"settle {name}")
            self._settling[name] = task
            task.add_done_callback(lambda _: self._settling.pop(name, None))

    async def close(self) -> None:
        """Finish what has begun, and let others have the folder."""
        await self.settled()
        self._shelf.release()

    async def settled(self) -> None:
        """Wait until what followed from loads is done; gives up on a disk that does not answer."""
        if self._settling:
            await asyncio.wait(self._settling.values(), timeout=limits.library_close_seconds_max)

    async def _settle(self, name: str, revision: str, capabilities: list[str]) -> None:
        async with self._lock(name):
            now = self._index.get(name)
            if now is None or now.model.revision != revision:
                return
            model = msgspec.structs.replace(
                now.model, has_loaded=True, previous_revision=None, capabilities=capabilities
            )
            self._index.put(msgspec.structs.replace(now, model=model))
            if now.model.previous_revision is not None:
                await self._drop_revision(name, now.model.previous_revision)
            await self._writer.save(name)

    # ------------------------------------------------------------------------------------------------ how

    def _put(self, installed: Installed, *, new: bool) -> None:
        name = installed.model.name
        self._index.put(installed)
        tell: Callable[..., None] = self._runtimes.add if new else self._runtimes.replace
        tell(name, self._config(installed), type=installed.model.type)

    def _later_than(self, before: Installed | None) -> str:
        """Now, and in any case after the revision of before was chosen: clocks are set back at times."""
        now = self._clock.now()
        if before is not None and before.model.modified_at is not None:
            now = max(now, datetime.fromisoformat(before.model.modified_at) + timedelta(microseconds=1))
        return now.isoformat()

    def _known(self, name: str) -> Installed:
        found = self._index.get(name)
        if found is None:
            raise NotFound(f"the model '{name}' is not installed", hint="`llmctl models` lists those that are")
        return found

    def _config(self, installed: Installed) -> ModelConfig:
        return model_config(installed, self._llm)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name.casefold(), asyncio.Lock())

    async def _drop_revision(self, name: str, revision: str) -> None:
        user = self._runtimes.configured_in(str(self._shelf.folder / name / revision))
        if user is not None:
            _log.warning("an old revision stays: the configuration has its files", model=user, revision=revision)
            return
        try:
            away = await asyncio.to_thread(self._shelf.remove_revision, name, revision)
            if away is not None:
                freed = await asyncio.to_thread(self._shelf.destroy, away)
                _log.info("removed an old revision", model=name, revision=revision, bytes=freed)
        except LlmvisorError as error:
            _log.warning("an old revision could not be removed", model=name, revision=revision, reason=str(error))
