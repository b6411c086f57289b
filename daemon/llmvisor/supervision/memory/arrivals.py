"""How often each model is asked for, the latest requests counting most. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Arrivals:
    """Requests by model, each forgotten by half after `half_life_seconds`."""

    def __init__(self, half_life_seconds: float) -> None:
        self._decay = math.log(2) / half_life_seconds
        self._counts: dict[str, tuple[float, float]] = {}

    def note(self, model: str, now: float) -> None:
        """A request has come."""
        self._counts[model] = (self._left(model, now) + 1, now)

    def per_second(self, model: str, now: float) -> float:
        """The rate at which requests have come of late."""
        return self._left(model, now) * self._decay

    def counts(self) -> dict[str, tuple[float, float]]:
        """By model: what is left of its requests, and when that was so. For `restore`."""
        return dict(self._counts)

    def restore(self, counts: Mapping[str, tuple[float, float]]) -> None:
        """Go on with what another had counted."""
        self._counts.update(counts)

    def forget(self, model: str) -> None:
        self._counts.pop(model, None)

    def _left(self, model: str, now: float) -> float:
        count, at = self._counts.get(model, (0.0, now))
        return count * math.exp(-self._decay * max(0.0, now - at))
