"""One publisher, any number of subscribers, none of which can hold up the publisher."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscription(Generic[T]):
    """What one subscriber has not read yet. A reader that is slow loses the oldest, and `dropped` counts them."""

    def __init__(self, items_max: int) -> None:
        self._items: deque[T] = deque(maxlen=items_max)
        self._arrived = asyncio.Event()
        self._closed = False
        self.dropped = 0

    def put(self, item: T) -> None:
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append(item)
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Every item from the subscription on, until the hub closes."""
        while True:
            while self._items:
                yield self._items.popleft()
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()


class Hub(Generic[T]):
    """Hands each published item to every subscriber. Belongs to one event loop."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._subscriptions: set[Subscription[T]] = set()
        self._closed = False

    def publish(self, item: T) -> None:
        for subscription in self._subscriptions:
            subscription.put(item)

    @contextmanager
    def subscribe(self) -> Generator[Subscription[T]]:
        """A subscription for as long as the `with` lasts."""
        subscription = Subscription[T](self._items_max)
        if self._closed:
            subscription.close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def end_subscriptions(self) -> None:
        """End the iteration of those that there are; who subscribes later is served."""
        for subscription in self._subscriptions:
            subscription.close()

    def close(self) -> None:
        """End every subscriber's iteration, now and later."""
        self._closed = True
        self.end_subscriptions()
