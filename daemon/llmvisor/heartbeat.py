"""Keeps a service manager informed for as long as the daemon lives, and its watchdog fed while all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from llmvisor import limits
from llmvisor.control.api import RuntimeStatus
from llmvisor.log import get_logger
from llmvisor.notify import Notifier

_UNREMARKABLE = {"not_loaded"}
_log = get_logger(__name__)


class Heartbeat:
    """Beats from `start` to `close`: also while the daemon drains.

    `problem` is asked before each beat, and while it names one the watchdog starves: the manager then ends the daemon
    and starts it anew. A loop that is blocked does not beat either. `describe` gives the line that people see.
    """

    def __init__(self, notifier: Notifier, *, problem: Callable[[], str | None], describe: Callable[[], str]) -> None:
        self._notifier = notifier
        self._problem = problem
        self._describe = describe
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._notifier.listens and self._task is None:
            self._task = asyncio.create_task(self._beat(), name="service manager")
            self._task.add_done_callback(_ended)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        watched = self._notifier.watchdog_seconds
        seconds = limits.notify_status_seconds
        if watched is not None:
            # systemd asks for one each half; a third leaves room for a loop that is busy.
            seconds = min(seconds, watched / 3)
        said: str | None = None
        while True:
            problem = self._problem()
            if problem is None and watched is not None:
                self._notifier.alive()
            elif problem is not None and problem != said:
                _log.error("the service manager's watchdog is not fed", reason=problem)
            said = problem
            self._notifier.status(problem or self._describe())
            await asyncio.sleep(seconds)


def describe(address: str, statuses: Iterable[RuntimeStatus]) -> str:
    """`http://127.0.0.1:8000: light busy (3 running, 1 waiting), heavy loaded`."""
    models = [_model(status) for status in statuses if status.state not in _UNREMARKABLE]
    return f"{address}: {', '.join(models) or 'no model is loaded'}"


def _model(status: RuntimeStatus) -> str:
    many = ((status.slots_busy, "running"), (status.queued, "waiting"))
    counts = [f"{count} {word}" for count, word in many if count]
    return f"{status.model} {status.state}" + (f" ({', '.join(counts)})" if counts else "")


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("the service manager is told nothing any more", exc_info=error)
