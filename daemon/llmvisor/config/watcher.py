"""Notices that the configuration's files have changed, and waits until whoever writes them has finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.inotify import FolderEvents
from llmvisor.config.source import ConfigSource, Look


class ConfigWatcher:
    """Calls `changed` once for each time that the files have come to rest in another state.

    The system tells of changes where it can, and the files are looked at every few seconds in any case: nobody tells
    of what another machine writes, or of a link's target.
    """

    def __init__(self, source: ConfigSource, changed: Callable[[], None], *, clock: Clock) -> None:
        self._source = source
        self._changed = changed
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled."""
        events = FolderEvents()
        seen = self._source.first_look
        try:
            while True:
                events.watch(self._source.places())
                if (found := await self._look()) != seen:
                    seen = await self._settled(found, events)
                    self._changed()
                await _happened(events, limits.config_look_seconds)
        finally:
            events.close()

    async def _settled(self, found: Look, events: FolderEvents) -> Look:
        """How the files are once nothing has changed for a moment and nobody has one open any more."""
        give_up = self._clock.monotonic() + limits.config_settle_seconds_max
        while True:
            events.happened.clear()
            await asyncio.sleep(limits.config_settle_seconds)
            before, found = found, await self._look()
            at_rest = found == before and not events.writing and not events.happened.is_set()
            if at_rest or self._clock.monotonic() >= give_up:
                return found

    async def _look(self) -> Look:
        # In a thread: a file system that hangs holds up nothing else.
        return await asyncio.to_thread(self._source.look)


async def _happened(events: FolderEvents, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await events.happened.wait()
    except TimeoutError:
        return
