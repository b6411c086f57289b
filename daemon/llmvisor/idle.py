"""Ends the daemon when nobody has asked it for anything for a while, without losing whoever asks just then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmvisor import limits
from llmvisor.listeners import Listeners
from llmvisor.log import get_logger
from llmvisor.parts import Parts

_log = get_logger(__name__)


async def end_when_idle(
    parts: Parts, listeners: Listeners, stop: Callable[[], None], *, under_way: Callable[[], bool]
) -> None:
    """Call `stop` after `server.shutdown_timeout` without a request; 0 = never.

    Nor while a job or something else of the daemon's own is `under_way`, such as an upgrade: that counts as a request.
    """
    while True:
        seconds = parts.config.server.shutdown_timeout
        if parts.jobs.busy or under_way():
            parts.supervisor.touch()
        left = seconds - (parts.clock.monotonic() - parts.supervisor.idle_since)
        if seconds and left <= 0:
            if await _nobody_asks(parts, listeners):
                _log.info("no request for a while: stopping", seconds=seconds)
                stop()
                return
            left = limits.idle_retry_seconds
        await asyncio.sleep(min(left, limits.idle_check_seconds) if seconds else limits.idle_check_seconds)


async def _nobody_asks(parts: Parts, listeners: Listeners) -> bool:
    """Whether it may end: nobody can connect any more, and nobody who has waits for an answer.

    Connections that come from now on wait in the backlog: for the next daemon, where a service manager holds the
    socket, else until this one goes on.
    """
    idle_since = parts.supervisor.idle_since
    await listeners.pause()
    for _ in range(limits.idle_turns):
        # What was accepted before the pause reads what it has been sent.
        await asyncio.sleep(0)
    if listeners.unanswered or parts.supervisor.idle_since != idle_since or parts.jobs.busy:
        await listeners.resume()
        return False
    listeners.let_go_of_idle()
    return True
