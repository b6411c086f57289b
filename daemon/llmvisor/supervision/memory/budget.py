"""How much memory the workers may take together, what each holds of it, and whether one more fits."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from llmvisor.errors import InsufficientMemory
from llmvisor.supervision.cpu import exchange


class _Held(msgspec.Struct):
    """What one model holds."""

    reserved_bytes: int
    """Estimated before it was loaded."""
    rss_bytes: int = 0
    """Its worker's, as last told."""
    own_bytes: int = 0
    """Of that, what the machine does not count as available any more."""

    @property
    def bytes(self) -> int:
        return max(self.reserved_bytes, self.rss_bytes)


class MemoryBudget:
    """What each model's worker was estimated to need or has taken, and the bound for all of them.

    Models are told apart by keys, so that two workers of one model count each on its own. `available` gives what the
    machine could give to new processes at the moment, in bytes.
    """

    def __init__(self, limit_bytes: int, *, available: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._available = available
        self._held: dict[str, _Held] = {}

    def free_bytes(self, *, without: Collection[str] = ()) -> int:
        """What models can have that have no memory yet, nor what those `without` hold: of the limit, and of what is
        free on the machine once the others have all that was set aside for them, and keep what is mapped of their
        files. May be below 0."""
        held = [each for key, each in self._held.items() if key not in without]
        to_come = sum(each.bytes - each.own_bytes for each in held)
        back = sum(each.own_bytes for key, each in self._held.items() if key in without)
        return min(self.limit_bytes - sum(each.bytes for each in held), self._available() + back - to_come)

    def attainable_bytes(self) -> int:
        """What there would be without any model."""
        return min(self.limit_bytes, self._available() + sum(each.own_bytes for each in self._held.values()))

    def fits(self, key: str, needed_bytes: int) -> bool:
        """Whether there is so much for a model now, nobody evicted."""
        return needed_bytes <= self.free_bytes(without={key})

    def reserve(self, key: str, needed_bytes: int) -> None:
        """Set memory aside for a model until `release`: it was decided that there is so much."""
        self._held.setdefault(key, _Held(0)).reserved_bytes = needed_bytes

    def refusal(self, needed_bytes: int, *, waited_seconds: float | None = None, users: str = "") -> InsufficientMemory:
        """The error of a model that gets no memory, telling who has it, and who of them is in use."""
        left = max(0, self.limit_bytes - self.reserved_bytes())
        waited = "" if waited_seconds is None else f"; nothing made room for it within {waited_seconds:.0f} s"
        waited += f": {users}" if waited and users else ""
        return InsufficientMemory(
            f"it needs about {size_text(needed_bytes)}; {size_text(left)} is left of the limit of "
            f"{size_text(self.limit_bytes)}, and {size_text(max(0, self._available()))} is free on the machine; "
            f"{self._holders()}{waited}",
            hint="unload a model (`llmctl unload NAME`), lower its n_ctx, raise memory.limit, or say with the model's "
            "`memory` what it takes where that is less",
        )

    def release(self, key: str) -> None:
        self._held.pop(key, None)

    def told(self, key: str, rss_bytes: int, own_bytes: int | None = None) -> None:
        """What a worker takes at the moment: where that is more than was set aside, it counts. `own_bytes` is the part
        that the machine does not count as available any more, all of it by default."""
        held = self._held.setdefault(key, _Held(0))
        held.rss_bytes = rss_bytes
        held.own_bytes = rss_bytes if own_bytes is None else min(own_bytes, rss_bytes)

    def exchange(self, one: str, other: str) -> None:
        """Two workers take each other's keys."""
        exchange(self._held, one, other)

    def holders(self) -> list[str]:
        """Who holds something."""
        return list(self._held)

    def held_bytes(self, key: str) -> int:
        """What a model has of the limit."""
        held = self._held.get(key)
        return held.bytes if held is not None else 0

    def rss_bytes(self, key: str) -> int:
        """What its worker last told."""
        held = self._held.get(key)
        return held.rss_bytes if held is not None else 0

    def excess_bytes(self, key: str) -> int:
        """By how much a worker is above what was set aside for it; below 0 where it has not got all of that."""
        held = self._held.get(key)
        return held.rss_bytes - held.reserved_bytes if held is not None and held.reserved_bytes else 0

    def reserved_bytes(self) -> int:
        """What all hold together."""
        return sum(each.bytes for each in self._held.values())

    def _holders(self) -> str:
        held = {key: each.bytes for key, each in self._held.items() if each.bytes}
        if not held:
            return "no model is loaded"
        return "held by " + ", ".join(f"{key} ({size_text(size)})" for key, size in held.items())


def size_text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 10 * 2**30 else f"{size / 2**20:,.0f} MiB"
