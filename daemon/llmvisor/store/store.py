"""The store's one thread: whatever reads or writes the file does it there, one after another, in a transaction each."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from llmvisor.clock import Clock
from llmvisor.errors import StoreUnavailable
from llmvisor.log import get_logger
from llmvisor.store import limits
from llmvisor.store.migrations import MIGRATIONS, Migration

if TYPE_CHECKING:
    from sqlite_utils import Database

    from llmvisor.store.file import StoreFile

T = TypeVar("T")
_log = get_logger(__name__)


class Store:
    """The file at `path`, from the first call until it is closed.

    What is asked for runs in order, also where whoever asked has gone meanwhile. Nothing on the loop waits for the
    thread without bound, and a thread that a dead disk holds does not hold up the end of the process.
    """

    def __init__(self, path: Path, clock: Clock, *, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
        self.path = path
        self._migrations = migrations
        self._clock = clock
        self._file: StoreFile | None = None
        self._queue: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._pending = 0
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self._problem: StoreUnavailable | None = None
        self._probe_at = 0.0
        self._silent = False

    @property
    def degraded(self) -> str | None:
        """Why nothing can be written, or read, at the moment; None while all is well."""
        if self._silent:
            return f"the store {self.path} does not answer (is its disk well?)"
        return None if self._problem is None else str(self._problem)

    async def open(self) -> None:
        """Wait until the thread has tried to open the file. What goes wrong is told by `degraded`."""
        with suppress(StoreUnavailable):
            await self._ask(lambda _: None, write=False, seconds_max=limits.store_open_seconds_max)

    async def close(self) -> None:
        """Finish what was asked for, and close the file; gives up on a disk that does not answer."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None or self._ended is None:
            return
        self._queue.put(None)
        done, _ = await asyncio.wait([self._ended], timeout=limits.store_close_seconds_max)
        if not done:
            _log.error("the store could not be closed in time", file=str(self.path))
            return
        thread.join()

    async def run(self, work: Callable[[Database], T], *, patient: bool = False) -> T:
        """What `work` gives, in a transaction of its own that is on the disk once this returns.

        Raises `StoreUnavailable`, and what `work` itself raises: nothing of it has been written then. But a store that
        has not answered in time may write it later; whoever cannot have that is `patient`, and waits without bound.
        """
        if not patient:
            return await self._ask(work, write=True)
        call = self._submit(work, write=True)
        while True:
            await asyncio.wait([call.answer], timeout=limits.store_answer_seconds_max)
            if call.answer.done():
                return call.answer.result()
            self._silent = True

    async def read(self, work: Callable[[Database], T]) -> T:
        """The same for work that writes nothing: it goes on where the disk is full, or another process writes."""
        return await self._ask(work, write=False)

    async def _ask(self, work: Callable[[Database], T], *, write: bool, seconds_max: float | None = None) -> T:
        call = self._submit(work, write=write)
        usual = limits.store_silent_seconds_max if self._silent else limits.store_answer_seconds_max
        try:
            async with asyncio.timeout(seconds_max or usual):
                return await asyncio.shield(call.answer)
        except TimeoutError:
            self._silent = True
            raise StoreUnavailable(self.degraded or "the store does not answer") from None

    def _submit(self, work: Callable[[Database], T], *, write: bool) -> _Call[T]:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._thread is None:
            self._start(loop)
        if self._pending >= limits.store_queue_calls_max:
            raise StoreUnavailable("the store does not keep up with what it is asked", hint="is its disk well?")
        call = _Call(work, write=write, loop=loop)
        self._pending += 1
        call.answer.add_done_callback(self._answered)
        self._queue.put(call)
        return call

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ended = loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(loop, self._ended), name="store", daemon=True)
        self._thread.start()

    def _answered(self, answer: asyncio.Future[Any]) -> None:
        self._pending -= 1
        self._silent = False
        if not answer.cancelled():
            answer.exception()  # looked at, else asyncio complains where whoever asked has gone

    # ------------------------------------------------------------------------------------------------ in the thread

    def _serve(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        while (call := self._next()) is not None:
            call.carry_out(self._transact)
        with suppress(queue.Empty):
            while (late := self._queue.get_nowait()) is not None:
                late.carry_out(_refuse)
        if self._file is not None:
            self._file.close()
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(_set_result, ended, None)

    def _next(self) -> _Call[Any] | None:
        """What is asked for next; a store that could not be written is tried every now and then."""
        while self._problem is not None:
            wait_seconds = self._probe_at - self._clock.monotonic()
            if wait_seconds <= 0:
                self._probe_at = self._clock.monotonic() + limits.store_retry_seconds
                self._probe()
                continue
            with suppress(queue.Empty):
                return self._queue.get(timeout=wait_seconds)
        return self._queue.get()

    def _transact(self, call: _Call[T]) -> T:
        value = self._guarded(lambda: self._of_thread().transact(call.work, write=call.write))
        if call.write and self._problem is not None:
            self._probe_at = self._clock.monotonic()  # what is small may fit on a full disk
        return value

    def _probe(self) -> None:
        """Take the problem back if there is none any more."""
        try:
            self._guarded(lambda: self._of_thread().probe())
        except StoreUnavailable:
            return
        except Exception as error:  # noqa: BLE001 - the store stays as it is, and the thread lives
            _log.error("the store could not be tried, by a mistake of ours", exc_info=error)
            return
        self._problem = None
        _log.info("the store can be used again", file=str(self.path))

    def _of_thread(self) -> StoreFile:
        if self._file is None:
            try:
                from llmvisor.store.file import StoreFile  # noqa: PLC0415 - the daemon's start need not wait for it
            except ImportError as error:
                raise StoreUnavailable(f"the store cannot be used: {error}", hint="is llmvisor whole?") from error
            self._file = StoreFile(self.path, self._clock, self._migrations)
        return self._file

    def _guarded(self, action: Callable[[], T]) -> T:
        """Keeps why the store cannot be used."""
        try:
            return action()
        except StoreUnavailable as problem:
            if self._problem is None:
                self._probe_at = self._clock.monotonic() + limits.store_retry_seconds
            if self._problem is None or self._problem.message != problem.message:
                _log.error("the store cannot be used", reason=problem.message, hint=problem.hint)
            self._problem = problem
            raise


class _Call(Generic[T]):
    """Something that was asked of the store, and its answer on the loop."""

    def __init__(self, work: Callable[[Database], T], *, write: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.write = write
        self.answer: asyncio.Future[T] = loop.create_future()
        self._loop = loop

    def carry_out(self, how: Callable[[_Call[T]], T]) -> None:
        with suppress(RuntimeError):  # the loop may be closed
            try:
                value = how(self)
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                self._loop.call_soon_threadsafe(_set_exception, self.answer, error)
            else:
                self._loop.call_soon_threadsafe(_set_result, self.answer, value)


def _refuse(_call: _Call[T]) -> T:
    raise StoreUnavailable("the store is closed")


def _set_result(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
