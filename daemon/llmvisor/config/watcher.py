"""Notices that the configuration's files have changed, and waits until whoever writes them has finished."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path

import psutil

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.source import ConfigSource, Look
from llmvisor.log import get_logger

Folders = dict[Path, tuple[int, int]]
"""Those that there are, and which they are."""
_log = get_logger(__name__)


class ConfigWatcher:
    """Calls `changed` once for each time that the files have come to rest in another state.

    The system tells of changes where it can, and the files are looked at every few seconds in any case: nobody tells
    of what another machine writes, or of a link's target.
    """

    def __init__(self, source: ConfigSource, changed: Callable[[], None], *, clock: Clock) -> None:
        self._source = source
        self._changed = changed
        self._clock = clock
        self._seen = source.first_look

    async def run(self) -> None:
        """Watch until cancelled."""
        # In a thread, as the looks are: requests come in already.
        await asyncio.to_thread(importlib.import_module, "watchfiles")
        while True:
            await self._check()
            folders = await asyncio.to_thread(self._folders)
            async with aclosing(_moments(folders)) as moments:
                async for _ in moments:
                    await self._check()
                    if await asyncio.to_thread(self._folders) != folders:
                        break

    async def _check(self) -> None:
        if (found := await self._look()) != self._seen:
            self._seen = await self._settled(found)
            self._changed()

    async def _settled(self, found: Look) -> Look:
        """How the files are once nothing has changed for a moment and nobody has one open to write any more."""
        give_up = self._clock.monotonic() + limits.config_settle_seconds_max
        while True:
            await asyncio.sleep(limits.config_settle_seconds)
            before, found = found, await self._look()
            if self._clock.monotonic() >= give_up:
                return found
            if found == before and not await asyncio.to_thread(_somebody_writes, self._source.places()):
                return found

    async def _look(self) -> Look:
        # In a thread: a file system that hangs holds up nothing else.
        return await asyncio.to_thread(self._source.look)

    def _folders(self) -> Folders:
        found: Folders = {}
        for folder in {place.parent for place in self._source.places()}:
            with suppress(OSError):
                status = folder.stat()
                found[folder] = (status.st_dev, status.st_ino)
        return found


async def _moments(folders: Folders) -> AsyncGenerator[None]:
    """Whenever something has happened in one of the folders, and every few seconds; ends where nobody can tell."""
    from watchfiles import awatch  # noqa: PLC0415 # pyright: ignore[reportUnknownVariableType] - loaded by now

    stop = asyncio.Event()
    changes = awatch(
        *folders,
        watch_filter=None,
        step=limits.config_step_ms,
        rust_timeout=int(limits.config_look_seconds * 1000),
        yield_on_timeout=True,
        recursive=False,
        stop_event=stop,
    )
    try:
        async with aclosing(changes):
            async for _ in changes:
                yield
    except Exception as error:  # noqa: BLE001 - no watches are left, a folder has gone: they are looked at all the same
        _log.debug("nobody tells of changes of files", reason=str(error))
        await asyncio.sleep(limits.config_look_seconds)
    finally:
        stop.set()


def _somebody_writes(files: Iterable[Path]) -> bool:
    """Whether a process, of those whose files this user may see, has one of these open to write."""
    names = {os.path.realpath(file) for file in files}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(opened.path in names and opened.mode != "r" for opened in process.open_files()):
                return True
    return False
