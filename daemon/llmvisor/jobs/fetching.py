"""Runs the fetch process: one for each fetch or search, told what to do on its stdin, heard line by line.

It parses what strangers have written, and talks to the network: it is a process of its own, in a session of its own,
with what it needs of the environment and no more. It ends with the daemon by the end of its stdin; what does not is
swept at the next start, as workers are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import (
    Fetched,
    FetchFailure,
    FetchProgress,
    FetchRequest,
    Found,
    Report,
    Request,
    SearchRequest,
    Unchanged,
)
from llmvisor.jobs.ending import FetchCrashed
from llmvisor.jobs.fetch_child import FetchChild
from llmvisor.jobs.work import finished
from llmvisor.log import get_logger
from llmvisor.supervision.workers.orphans import OrphanJournal
from llmvisor.supervision.workers.spawn import (
    NONCE_VARIABLE,
    pipe_ends,
    require_descriptors,
    seal_descriptors,
    worker_environment,
)

T = TypeVar("T")
_log = get_logger(__name__)
_REPORT = msgspec.json.Decoder(Report)
_NAMES = frozenset(
    {
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NETRC",
        "PYTHONPATH",
    }
)
"""Beside a worker's: the hub's token and place, and how this machine reaches the network."""
_PREFIXES = ("PIP_", "UV_")
_SPAWN_FDS = 10


def fetch_environment(daemon: Mapping[str, str]) -> dict[str, str]:
    """What the fetch process gets of the daemon's environment."""
    own = {name: value for name, value in daemon.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return worker_environment(daemon, own)


class FetchRunner:
    """Starts fetch processes. `nonce_source` gives unguessable hexadecimal digits; `command` is for tests."""

    def __init__(
        self,
        *,
        command: list[str],
        environment: Mapping[str, str],
        journal: Callable[[], OrphanJournal],
        nonce_source: Callable[[], str],
        clock: Clock,
        silent_seconds_max: float = limits.fetch_silent_seconds_max,
    ) -> None:
        self._command = command
        self._environment = environment
        self._journal = journal
        self._nonce_source = nonce_source
        self._clock = clock
        self._silent_seconds_max = silent_seconds_max

    async def fetch(
        self, request: FetchRequest, *, on_progress: Callable[[FetchProgress], None]
    ) -> Fetched | Unchanged:
        """Bring a model. Raises `FetchProblem` (what the process says), `FetchCrashed` (it said nothing)."""
        return _expected(await self._run(request, on_progress), (Fetched, Unchanged))

    async def search(self, request: SearchRequest) -> Found:
        """What a registry finds. Raises `FetchProblem`, `FetchCrashed`."""
        return _expected(await self._run(request, lambda _: None), (Found,))

    async def _run(self, request: Request, on_progress: Callable[[FetchProgress], None]) -> Report:
        child = await self._start(request)
        last: Report | None = None
        try:
            async with asyncio.timeout(self._silent_seconds_max) as deadline:
                async for line in child.lines():
                    deadline.reschedule(asyncio.get_running_loop().time() + self._silent_seconds_max)
                    last = _REPORT.decode(line)
                    if not isinstance(last, FetchProgress):
                        break
                    on_progress(last)
        except TimeoutError:
            raise FetchCrashed(f"the fetch process said nothing for {self._silent_seconds_max:g} s") from None
        except msgspec.MsgspecError as error:
            child.stop("kill")
            raise FetchCrashed(f"the fetch process said what it should not: {error}") from None
        finally:
            # What has answered ends by itself; what has hung up without an answer is not waited for.
            child.stop("terminate" if last is None or isinstance(last, FetchProgress) else "close")
            end = await finished(child.ended())
        if last is None or isinstance(last, FetchProgress):
            raise FetchCrashed(f"the fetch process {end}")
        return last

    async def _start(self, request: Request) -> FetchChild:
        """Raises `FetchCrashed` where it cannot be started."""
        nonce = self._nonce_source()
        try:
            child = await self._spawn(nonce)
        except OSError as error:
            raise FetchCrashed(f"the fetch process cannot be started: {error.strerror}") from error
        try:
            journal = self._journal()
            journal.record(pid=child.pid, nonce=nonce, model="fetch")
            child.on_end = lambda: journal.remove(nonce)
        except (OSError, ValueError) as error:
            _log.warning("the fetch process is not in the orphan journal", error=str(error))
        child.tell(msgspec.json.encode(request) + b"\n")
        return child

    async def _spawn(self, nonce: str) -> FetchChild:
        with ExitStack() as ours, ExitStack() as theirs:
            stdin_read, stdin_write = pipe_ends(reads=theirs, writes=ours)
            stdout_read, stdout_write = pipe_ends(reads=ours, writes=theirs)
            stderr_read, stderr_write = pipe_ends(reads=ours, writes=theirs)
            for fd in (stdin_write, stdout_read, stderr_read):
                os.set_blocking(fd, False)
            seal_descriptors()
            require_descriptors(_SPAWN_FDS)
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=stdin_read,
                stdout=stdout_write,
                stderr=stderr_write,
                env={**self._environment, NONCE_VARIABLE: nonce},
                close_fds=True,
                start_new_session=True,
            )
            ours.pop_all()
            return FetchChild(process, stdin_write, stdout_read, stderr_read, clock=self._clock)


def _expected(report: Report, kinds: tuple[type[T], ...]) -> T:
    if isinstance(report, kinds):
        return report
    if isinstance(report, FetchFailure):
        raise FetchProblem(
            report.kind, report.message, hint=report.hint, retry_after_seconds=report.retry_after_seconds
        )
    raise FetchCrashed(f"the fetch process answered with {type(report).__name__}")
