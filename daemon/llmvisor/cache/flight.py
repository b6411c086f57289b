"""One run that several requests share: the same question asked again while the first is being answered."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Self, TypeVar

from llmvisor import limits
from llmvisor.errors import LlmvisorError, RequestTimeout
from llmvisor.services.service import CacheState, Stream
from llmvisor_runtimes.protocol import Delta, Done

T = TypeVar("T")


@asynccontextmanager
async def until(deadline: float | None) -> AsyncGenerator[None]:
    """Raises `RequestTimeout` once the deadline is over; the loop's clock is the daemon's monotonic one."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise RequestTimeout("the request's time is over") from None


class StreamFlight:
    """A generation that runs for whoever follows it, and ends where nobody does any more."""

    def __init__(self, stream: Stream, on_end: Callable[[StreamFlight], None]) -> None:
        self.stream = stream
        self.deltas: list[Delta] = []
        self.done: Done | None = None
        self.error: BaseException | None = None
        self.followers = 0
        self.read = 0
        """Deltas that the fastest follower has taken."""
        self.taken = asyncio.Event()
        self.arrival = asyncio.Event()
        self._on_end = on_end
        self._task = asyncio.get_running_loop().create_task(self._run(), name="shared generation")

    @property
    def ended(self) -> bool:
        return self.done is not None or self.error is not None

    def leave(self) -> None:
        """A follower has gone."""
        self.followers -= 1
        if not self.followers and not self.ended:
            self._on_end(self)
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async with self.stream:
                async for deltas in self.stream:
                    self.deltas += deltas
                    self._wake()
                    while len(self.deltas) - self.read > limits.stream_pause_deltas:
                        # What is not read here fills the stream below, which then pauses the worker.
                        self.taken.clear()
                        await self.taken.wait()
            self.done = self.stream.done
        except asyncio.CancelledError:
            self.error = asyncio.CancelledError()
            raise
        except Exception as error:  # noqa: BLE001 - raised again in each follower
            self.error = error
        finally:
            self._on_end(self)
            self._wake()

    def _wake(self) -> None:
        arrival, self.arrival = self.arrival, asyncio.Event()
        arrival.set()


class FollowingStream:
    """A generation of a flight, from its beginning: see `services.service.Stream`."""

    def __init__(self, flight: StreamFlight, cache: CacheState, deadline: float | None = None) -> None:
        """`deadline` is on the daemon's monotonic clock; a run that is shared has none itself."""
        flight.followers += 1
        self._deadline = deadline
        self._flight: StreamFlight | None = flight
        self._followed = flight
        self.waits_for = flight.stream.waits_for
        self.cache: CacheState = cache

    @property
    def queue_ms(self) -> float:
        return self._followed.stream.queue_ms

    @property
    def load_ms(self) -> float:
        return self._followed.stream.load_ms

    @property
    def done(self) -> Done | None:
        return self._followed.done

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        flight, place = self._followed, 0
        while True:
            if place < len(flight.deltas):
                batch = flight.deltas[place:]
                place += len(batch)
                flight.read = max(flight.read, place)
                flight.taken.set()
                yield batch
            elif flight.error is not None:
                raise copy.copy(flight.error)  # callers add to it what is theirs
            elif flight.done is not None:
                return
            else:
                await self._arrival(flight)

    async def _arrival(self, flight: StreamFlight) -> None:
        if self._deadline is None:
            await flight.arrival.wait()
            return
        async with until(self._deadline):
            await flight.arrival.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.leave()


class ReplayedStream:
    """A generation that was answered before: see `services.service.Stream`."""

    queue_ms = 0.0
    load_ms = 0.0
    cache: CacheState = "hit"

    def __init__(self, deltas: Sequence[Delta], done: Done) -> None:
        self._deltas = deltas
        self.waits_for: Callable[[], str] = str
        self.done: Done | None = done

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        yield self._deltas

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing is held."""


class Flights(Generic[T]):
    """Calls with one answer each, shared by key."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._waiting: dict[asyncio.Task[T], int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def join(self, key: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of the call under way for this key, or of a new one; it is cancelled when nobody waits for it."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(call(), name="shared call")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        self._waiting[task] = self._waiting.get(task, 0) + 1
        try:
            return await asyncio.shield(task)
        except LlmvisorError as error:
            raise copy.copy(error) from None  # callers add to it what is theirs
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                self._landed(key, task)
                task.cancel()

    def _landed(self, key: str, task: asyncio.Task[T]) -> None:
        """Nobody joins a run that has ended, or that nobody waits for."""
        if self._tasks.get(key) is task:
            del self._tasks[key]
