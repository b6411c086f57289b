"""How the cores are shared out among the models that compute at the moment. Pure.

Threads of two engines that spin for each other on the same cores slow both by more than ten times. So whoever computes
alone has all the cores, and as soon as another begins each has its part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


class CoreShares:
    """Shares `cores` cores out among the busy; `tell` is called with a model's new number of threads.

    A model whose threads are set by hand is `fixed`: it keeps them, and the others share what is left.
    """

    def __init__(self, cores: int, fixed: dict[str, int], tell: Callable[[str, int], None]) -> None:
        self._cores = cores
        self._fixed = fixed
        self._tell = tell
        self._busy: dict[str, None] = {}
        self._told: dict[str, int] = {}

    def threads(self, model: str) -> int | None:
        """The threads that a model was last told to use; None before its first request."""
        return self._fixed.get(model) or self._told.get(model)

    def configure(self, cores: int) -> None:
        """So many cores are shared out from now on."""
        self._cores = cores
        self._share()

    def fix(self, model: str, threads: int | None) -> None:
        """A model's threads are set by hand, or not any more."""
        self._fixed.pop(model, None)
        if threads:
            self._fixed[model] = threads
        self._share()

    def exchange(self, one: str, other: str) -> None:
        """Two models take each other's names."""
        exchange(self._fixed, one, other)
        exchange(self._told, one, other)
        exchange(self._busy, one, other)

    def told(self, model: str, threads: int) -> None:
        """A model's worker computes with so many already."""
        self._told[model] = threads

    def begin(self, model: str) -> None:
        """A model has something to compute."""
        if model not in self._busy:
            self._busy[model] = None
            self._share()

    def end(self, model: str) -> None:
        """A model has nothing to compute any more."""
        if model in self._busy:
            del self._busy[model]
            self._share()

    def forget(self, model: str) -> None:
        """A model's worker is gone; the next one knows nothing of its share."""
        self._told.pop(model, None)
        self.end(model)

    def _share(self) -> None:
        sharing = [model for model in self._busy if model not in self._fixed]
        left = self._cores - sum(threads for model, threads in self._fixed.items() if model in self._busy)
        for model, threads in zip(sharing, parts(left, len(sharing)), strict=True):
            if self._told.get(model) != threads:
                self._told[model] = threads
                self._tell(model, threads)


def parts(cores: int, count: int) -> list[int]:
    """`cores` in `count` parts as equal as can be, the first ones larger; never less than one."""
    if count == 0:
        return []
    each, rest = divmod(max(cores, count), count)
    return [each + (place < rest) for place in range(count)]


def exchange(known: dict[str, Value], one: str, other: str) -> None:
    """What is known of one is known of the other from now on, and the other way round."""
    here = {other: known.pop(one)} if one in known else {}
    there = {one: known.pop(other)} if other in known else {}
    known.update(here | there)
