"""Reads the configuration again, one time after another, and says what came of it.

Reloads that are asked for while one runs share the next one. Whatever goes wrong, what ran goes on as it was.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.layers import LoadedConfig
from llmvisor.config.reload import Change, ReloadPlan, plan
from llmvisor.config.source import ConfigSource
from llmvisor.control.api import (
    ConfigChange,
    ConfigStatus,
    ConfigWait,
    Event,
    ReloadCause,
    ReloadOutcome,
    ReloadReport,
)
from llmvisor.errors import ConfigError, Conflict, InvalidConfig, ReloadFailed, ShuttingDown, StartError
from llmvisor.log import get_logger
from llmvisor.notify import Notifier
from llmvisor.parts import Parts
from llmvisor.reconfiguring import Reconfigurer

_CAUSES: tuple[ReloadCause, ...] = ("request", "signal", "watch")
"""What is told of several."""
_log = get_logger(__name__)


class Reloader:
    """What `source` gives is made to hold by the reconfigurer."""

    def __init__(
        self,
        source: ConfigSource,
        parts: Parts,
        reconfigurer: Reconfigurer,
        *,
        notifier: Notifier,
        clock: Clock,
    ) -> None:
        self._source = source
        self._parts = parts
        self._reconfigurer = reconfigurer
        self._notifier = notifier
        self._clock = clock
        self._first = parts.loaded
        self._loaded_at = clock.now().isoformat()
        self._waiting: list[ConfigWait] = []
        self._last_failure: ReloadReport | None = None
        self._running = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._next: asyncio.Task[ReloadReport] | None = None
        self._causes: set[ReloadCause] = set()
        self._tasks: set[asyncio.Task[ReloadReport]] = set()
        self._closing = False

    # ------------------------------------------------------------------------------------------------ what is asked

    def status(self) -> ConfigStatus:
        loaded, failure, supervisor = self._parts.loaded, self._last_failure, self._parts.supervisor
        return ConfigStatus(
            file=str(loaded.file) if loaded.file else None,
            loaded_at=self._loaded_at,
            problems=failure.problems if failure else [],
            failed_at=failure.time if failure else None,
            waits=self._waiting,
            replacing=supervisor.replacing.pending,
            stayed=dict(supervisor.stayed),
        )

    @property
    def under_way(self) -> bool:
        """Whether one runs, or is about to."""
        return bool(self._tasks) or self._writing.locked()

    def begin(self, cause: ReloadCause) -> None:
        """Reload, and let the log say what came of it."""
        if not self._closing:
            self._run(cause)

    async def reload(self, cause: ReloadCause) -> ReloadReport:
        """Read the configuration now, and make it hold. Raises `ShuttingDown`."""
        if self._closing:
            raise ShuttingDown("the server is shutting down")
        try:
            return await asyncio.shield(self._run(cause))
        except asyncio.CancelledError:
            if self._closing:
                raise ShuttingDown("the server is shutting down") from None
            raise

    async def put(self, text: str) -> ReloadReport:
        """Make this the text of the configuration file, and hold; where it cannot, the file is as it was before.

        Raises `InvalidConfig`, `Conflict` where there is no file, `ReloadFailed` where it cannot be written, and
        `ShuttingDown`.
        """
        file = self._parts.loaded.file
        if file is None:
            raise Conflict("the daemon runs without a configuration file", hint="`llmctl config init` writes one")
        # Who asked may leave in the middle of it: the file and what holds belong together.
        return await asyncio.shield(asyncio.get_running_loop().create_task(self._write(file, text), name="put config"))

    async def _write(self, file: Path, text: str) -> ReloadReport:
        async with self._writing:
            if problems := await asyncio.to_thread(self._source.check, text, str(file)):
                raise InvalidConfig("the configuration is wrong: " + "; ".join(problems))
            try:
                before = await asyncio.to_thread(file.read_bytes)
                await asyncio.to_thread(_replace_file, file, text.encode())
            except OSError as error:
                raise ReloadFailed(f"{file} cannot be written: {error.strerror}") from error
            try:
                report = await self.reload("request")
            except ShuttingDown:
                await asyncio.to_thread(_replace_file, file, before)
                raise
            if report.outcome in {"refused", "failed"}:
                await asyncio.to_thread(_replace_file, file, before)
            return report

    async def close(self) -> None:
        """The daemon ends: what has begun is finished, within a bound, and nothing begins any more."""
        self._closing = True
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=limits.reload_close_seconds_max)
        for task in tasks:
            task.cancel()

    # ------------------------------------------------------------------------------------------------ one at a time

    def _run(self, cause: ReloadCause) -> asyncio.Task[ReloadReport]:
        """The reload that begins next: everybody who asks before it does gets the same."""
        self._causes.add(cause)
        if self._next is None:
            # In a context of its own: others than who asks first may share it.
            self._next = asyncio.get_running_loop().create_task(
                self._in_turn(), name="reload", context=contextvars.Context()
            )
            self._tasks.add(self._next)
            self._next.add_done_callback(self._ended)
        return self._next

    def _ended(self, task: asyncio.Task[ReloadReport]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ShuttingDown):
            _log.error("a reload failed by a bug of ours; what ran goes on", exc_info=error)

    async def _in_turn(self) -> ReloadReport:
        async with self._running:
            causes, self._causes, self._next = self._causes, set(), None
            if self._closing:
                raise ShuttingDown("the server is shutting down")
            cause = min(causes, key=_CAUSES.index)
            self._notifier.reloading()
            try:
                known = self._last_failure
                return self._told(await self._reload(cause), known)
            finally:
                if not self._closing:
                    self._notifier.ready()

    async def _reload(self, cause: ReloadCause) -> ReloadReport:
        before = self._parts.loaded
        try:
            new = await asyncio.to_thread(self._source.load_after, before)
        except ConfigError as error:
            return self._failed(cause, "refused", error.problems)
        if cause == "watch" and new.api_keys == before.api_keys and plan(before.config, new.config).is_empty:
            # It has been read already: models that could not be loaded so are not tried again for that.
            self._last_failure, failure = None, self._last_failure
            summary = "nothing changed" if failure is None else "it is again as it was"
            return ReloadReport(self._clock.now().isoformat(), cause, "unchanged", summary)
        found = plan(self._reconfigurer.running(), new.config)
        try:
            await self._reconfigurer.apply(new, found)
        except Exception as error:  # noqa: BLE001 - whatever it was, what ran goes on
            expected = isinstance(error, OSError | StartError)
            _log.error("the configuration could not be applied", exc_info=None if expected else error)
            return self._failed(cause, "failed", [str(error)])
        self._waiting = self._waits(new)
        report = _report(found, cause, self._clock.now().isoformat(), self._waiting)
        self._last_failure = None
        if report.outcome == "applied":
            self._loaded_at = report.time
        return report

    def _failed(self, cause: ReloadCause, outcome: ReloadOutcome, problems: list[str]) -> ReloadReport:
        summary = f"{problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        return ReloadReport(self._clock.now().isoformat(), cause, outcome, summary, problems=problems)

    def _told(self, report: ReloadReport, known: ReloadReport | None) -> ReloadReport:
        """One line of log, one event; none for files that were touched and say the same as before."""
        if report.problems:
            self._last_failure = report
        again = known is not None and report.problems == known.problems
        if report.cause == "watch" and (again or (report.outcome == "unchanged" and known is None)):
            return report
        if report.problems:
            _log.error("configuration not reloaded, the earlier one goes on", problems=report.problems)
        else:
            _log.info("configuration reloaded", what=report.summary, cause=report.cause)
        self._parts.events.publish(Event(report.time, "config", config=report))
        return report

    def _waits(self, loaded: LoadedConfig) -> list[ConfigWait]:
        """What differs from how this daemon was started, and cannot change before the next start."""
        waits = {
            wait.path: ConfigWait(wait.path, wait.reason) for wait in plan(self._first.config, loaded.config).waits
        }
        waits |= {wait.path: wait for wait in self._reconfigurer.waits(self._first.config, loaded.config)}
        return list(waits.values())


def _report(found: ReloadPlan, cause: ReloadCause, time: str, waits: list[ConfigWait]) -> ReloadReport:
    changed = [*found.logging, *found.cache, *found.limits, *found.routing, *found.http_listener]
    changed += found.control_listener
    for model in [*found.models_updated, *found.models_replaced]:
        changed += model.changes
    return ReloadReport(
        time=time,
        cause=cause,
        outcome="unchanged" if found.is_empty else "applied",
        summary=found.summary(),
        changed=[_shown(change) for change in changed],
        models_added=found.models_added,
        models_removed=found.models_removed,
        models_updated=[model.name for model in found.models_updated],
        models_replaced=[model.name for model in found.models_replaced],
        waits=waits,
    )


def _shown(change: Change) -> ConfigChange:
    return ConfigChange(change.path, *(msgspec.Raw(msgspec.json.encode(value)) for value in (change.old, change.new)))


def _replace_file(file: Path, data: bytes) -> None:
    """All at once, of the same mode and owner: whoever reads it sees the old file or the new one."""
    file = Path(os.path.realpath(file))
    status = file.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(descriptor, "wb") as opened:
            if os.geteuid() == 0:
                os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
