"""The inputs of one lane that wait to be encoded, by client and by length. Pure."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

P = TypeVar("P")


class Unit(Generic[P]):
    """One text that is computed once, for however many asked for it."""

    __slots__ = ("askers", "client", "key", "length", "payload", "queue")

    def __init__(self, key: Hashable, length: int, payload: P, client: str) -> None:
        self.key = key
        self.length = length
        """Tokens."""
        self.payload = payload
        self.client = client
        self.askers: set[int] = set()
        """Ids of the jobs that want it."""
        self.queue: LaneQueue[P] | None = None
        """Where it waits; None once it is in a batch."""


class Shape:
    """What a batch may hold: tokens with padding, inputs, and how much of it may be padding."""

    __slots__ = ("inputs_max", "padding_free_tokens", "padding_share_max", "tokens_max")

    def __init__(
        self, *, tokens_max: int, inputs_max: int, padding_share_max: float, padding_free_tokens: int = 0
    ) -> None:
        self.tokens_max = tokens_max
        self.inputs_max = inputs_max
        self.padding_share_max = padding_share_max
        self.padding_free_tokens = padding_free_tokens

    def takes(self, count: int, tokens: int, longest: int) -> bool:
        """Whether a batch of these is within all bounds."""
        padded = count * longest
        return (
            count <= self.inputs_max
            and padded <= self.tokens_max
            and padded - tokens <= max(padded * self.padding_share_max, self.padding_free_tokens)
        )


class LaneQueue(Generic[P]):
    """Units in the order in which they came; clients take turns."""

    def __init__(self) -> None:
        # Ordered dictionaries: first-in first-out, and a cancelled unit leaves at once, whichever place it has.
        self._by_client: OrderedDict[str, OrderedDict[Unit[P], None]] = OrderedDict()
        self._by_length: dict[int, OrderedDict[str, OrderedDict[Unit[P], None]]] = {}
        self._lengths: list[int] = []
        """Keys of `_by_length`, ascending."""

    def __bool__(self) -> bool:
        return bool(self._by_client)

    def add(self, unit: Unit[P]) -> None:
        """Put a unit at the end."""
        unit.queue = self
        self._by_client.setdefault(unit.client, OrderedDict())[unit] = None
        if unit.length not in self._by_length:
            self._by_length[unit.length] = OrderedDict()
            bisect.insort(self._lengths, unit.length)
        self._by_length[unit.length].setdefault(unit.client, OrderedDict())[unit] = None

    def remove(self, unit: Unit[P]) -> None:
        """Take a unit out."""
        unit.queue = None
        _discard(self._by_client, unit)
        same_length = self._by_length[unit.length]
        _discard(same_length, unit)
        if not same_length:
            del self._by_length[unit.length]
            del self._lengths[bisect.bisect_left(self._lengths, unit.length)]

    def take(self, shape: Shape) -> list[Unit[P]]:
        """The units of one batch, out of the queue: the oldest of the client whose turn it is, and what goes with it.

        Lengths next to that one are added, the cheaper side first, for as long as the bounds hold. A unit that is over
        the bounds by itself goes alone.
        """
        client, oldest = next(iter(self._by_client.items()))
        seed = next(iter(oldest))
        # Whose turn it was is last now, among those of the same length too.
        self._by_client.move_to_end(client)
        self._by_length[seed.length].move_to_end(client)
        self.remove(seed)
        batch, tokens = [seed], seed.length
        shortest = longest = seed.length
        # A side that is over a bound once stays so: what follows on it is further away.
        down_open = up_open = True
        while down_open or up_open:
            count = len(batch) + 1
            up = self._at_least(longest) if up_open else None
            down = self._at_most(shortest) if down_open else None
            up_open = up is not None and shape.takes(count, tokens + up, up)
            down_open = down is not None and shape.takes(count, tokens + down, longest)
            if (
                up is not None
                and up_open
                and (not down_open or down is None or _up_is_cheaper(batch, down, longest, up))
            ):
                length = longest = up
            elif down is not None and down_open:
                length = shortest = down
            else:
                break
            batch.append(self._next_of(length))
            tokens += length
        return batch

    def _at_least(self, length: int) -> int | None:
        at = bisect.bisect_left(self._lengths, length)
        return self._lengths[at] if at < len(self._lengths) else None

    def _at_most(self, length: int) -> int | None:
        at = bisect.bisect_right(self._lengths, length)
        return self._lengths[at - 1] if at else None

    def _next_of(self, length: int) -> Unit[P]:
        """A unit of this length, of the client whose turn it is among them."""
        clients = self._by_length[length]
        client, units = next(iter(clients.items()))
        unit = next(iter(units))
        clients.move_to_end(client)
        self.remove(unit)
        return unit


def _up_is_cheaper(batch: Sequence[object], down: int, longest: int, up: int) -> bool:
    """Whether the next longer unit brings no more padding than the next shorter one."""
    return (up - longest) * len(batch) <= longest - down


def _discard(clients: OrderedDict[str, OrderedDict[Unit[P], None]], unit: Unit[P]) -> None:
    units = clients[unit.client]
    del units[unit]
    if not units:
        del clients[unit.client]
