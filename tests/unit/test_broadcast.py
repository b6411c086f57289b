"""One publisher, many subscribers."""

from __future__ import annotations

import asyncio

from llmvisor.broadcast import Hub, Subscription


async def take(subscription: Subscription[int], count: int) -> list[int]:
    items = aiter(subscription)
    return [await anext(items) for _ in range(count)]


async def test_every_subscriber_gets_what_comes_after_it_subscribed() -> None:
    """Nothing of before, everything of after, in order."""
    hub: Hub[int] = Hub(10)
    hub.publish(0)
    with hub.subscribe() as first, hub.subscribe() as second:
        hub.publish(1)
        hub.publish(2)
        assert await take(first, 2) == [1, 2]
        assert await take(second, 2) == [1, 2]


async def test_slow_subscriber_loses_the_oldest_and_learns_how_many() -> None:
    """The publisher never waits, and memory is bounded."""
    hub: Hub[int] = Hub(3)
    with hub.subscribe() as subscription:
        for item in range(10):
            hub.publish(item)
        assert await take(subscription, 3) == [7, 8, 9]
        assert subscription.dropped == 7


async def test_subscriber_that_waits_is_woken() -> None:
    """By an item, and by the end."""
    hub: Hub[int] = Hub(3)

    async def read() -> list[int]:
        with hub.subscribe() as subscription:
            return [item async for item in subscription]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    hub.publish(1)
    await asyncio.sleep(0)
    hub.publish(2)
    hub.close()
    assert await asyncio.wait_for(reading, 5) == [1, 2]


async def test_end_comes_after_what_is_left() -> None:
    """A job's last state is read although its hub has closed."""
    hub: Hub[int] = Hub(3)
    with hub.subscribe() as subscription:
        hub.publish(1)
        hub.close()
        assert [item async for item in subscription] == [1]


async def test_subscription_after_the_end_is_empty() -> None:
    """Nobody hangs on a hub that has closed."""
    hub: Hub[int] = Hub(3)
    hub.close()
    with hub.subscribe() as subscription:
        assert [item async for item in subscription] == []


async def test_subscriber_that_left_is_forgotten() -> None:
    """What comes later is kept nowhere."""
    hub: Hub[int] = Hub(3)
    with hub.subscribe() as subscription:
        pass
    hub.publish(1)
    hub.close()
    subscription.close()
    assert [item async for item in subscription] == []
