"""The fetch process: `python -m llmvisor.fetch`. It reads one request, and ends with one answer; see `protocol`.

Nothing that it does is lost by its death: it may be killed at any moment.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from contextlib import suppress

from llmvisor.clock import SystemClock
from llmvisor.fetch import limits, sources
from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem, disk_problem
from llmvisor.fetch.pipes import LastLine, Reporter, read_request, wait_for_end
from llmvisor.fetch.protocol import FetchRequest, Request

ENDED = 143
"""The exit status of a fetch that was told to end, or whose daemon is gone."""


def main() -> int:
    """0: there is a last line, of success or failure."""
    output = _keep_stdout()
    _bound_memory()
    reporter = Reporter(output, SystemClock().monotonic)
    try:
        try:
            request = read_request(sys.stdin.fileno())
        except FetchProblem as problem:
            reporter.end(problem.failure())
            return 0
        _watch_for_the_end()
        last = asyncio.run(_answer(request, reporter))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the daemon may hang up as soon as it has the last line
        reporter.end(last)
    except (asyncio.CancelledError, KeyboardInterrupt, BrokenPipeError):
        return ENDED
    return 0


def _keep_stdout() -> int:
    """The descriptor for our lines alone: what a library prints goes to stderr."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _bound_memory() -> None:
    """What a server sends to a library that sets no bound becomes a MemoryError, here and in what is started."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        bound = limits.fetch_memory_bytes_max
        resource.setrlimit(resource.RLIMIT_DATA, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


def _watch_for_the_end() -> None:
    """The end of stdin is a SIGTERM."""

    def watch() -> None:
        with suppress(OSError):
            wait_for_end(sys.stdin.fileno())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


async def _answer(request: Request, reporter: Reporter) -> LastLine:
    task = asyncio.ensure_future(_fetch_or_search(request, reporter))
    telling = asyncio.create_task(reporter.keep_up())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _end, task)
    try:
        return await task
    except FetchProblem as problem:
        return problem.failure()
    except OSError as error:
        return disk_problem(error, "the fetch failed").failure()
    finally:
        telling.cancel()


def _end(task: asyncio.Future[LastLine]) -> None:
    """Note how far it is and end; a disk that hangs must not hold the process."""
    signal.setitimer(signal.ITIMER_REAL, limits.fetch_end_seconds_max)
    task.cancel()


async def _fetch_or_search(request: Request, reporter: Reporter) -> LastLine:
    async with open_session() as session:
        if not isinstance(request, FetchRequest):
            return await sources.search(request, session=session)
        if request.source != "starter":
            os.environ["NETRC"] = os.devnull  # its logins are for the packages' index; others bring their own
        return await sources.fetch(request, session=session, report=reporter.progress)


if __name__ == "__main__":
    sys.exit(main())
