"""Tasks that run beside everything else. One that dies takes the daemon with it: half a daemon helps nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from llmvisor.log import get_logger

_log = get_logger(__name__)


class Background:
    """`stop` is called when one of the tasks fails, and `failure` is then what it failed with."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("a part of the daemon has died; stopping", part=task.get_name(), exc_info=error)
            self._fail(error)

    def on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody caught. Of a callback of ours it is a bug that leaves the state unsure: the daemon ends."""
        error: BaseException | None = context.get("exception")
        _log.error("an error that nobody caught", what=str(context.get("message")), exc_info=error)
        if error is not None and "handle" in context:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._stop()
