"""How long requests take in one model, and what whoever has to come again is told. Pure.

What is measured is the time that a place (a slot of the worker) is held: a request of `n` choices holds `n`.
"""

from __future__ import annotations

from llmvisor import limits
from llmvisor.supervision.scheduling.effects import Ticket

_RECENT = 0.2
"""The share of the newest measure in the mean."""


class ServiceTimes:
    """One model's measures; times in seconds."""

    def __init__(self) -> None:
        self.mean_seconds: float | None = None
        """That a place is held for; None while nothing has ended."""
        self.load_seconds: float | None = None
        """Of the last load."""
        self._running: dict[int, tuple[Ticket, float]] = {}
        self._promised_until = 0.0

    def loaded(self, seconds: float) -> None:
        """A load took so long."""
        self.load_seconds = seconds

    def began(self, ticket: Ticket, now: float) -> None:
        if ticket.weight:
            self._running[ticket.id] = (ticket, now)

    def ended(self, ticket_id: int, now: float) -> tuple[Ticket, float] | None:
        """A request has let go of its places: whose it was, and how many turns it took beyond its weight."""
        ticket, began = self._running.pop(ticket_id, (None, 0.0))
        if ticket is None:
            return None
        held, mean = now - began, self.mean_seconds
        self.mean_seconds = held if mean is None else mean + _RECENT * (held - mean)
        if mean is None or mean <= 0:
            return ticket, 0.0
        share = min(max(held / mean, limits.turn_share_min), limits.turn_share_max)
        return ticket, ticket.weight * (share - 1.0)

    def forget_running(self) -> None:
        """The worker is gone: what it held tells nothing."""
        self._running.clear()

    def wait_seconds(self, ahead: int, slots: int) -> float | None:
        """How long until so many places have become free; None while nobody knows."""
        return None if self.mean_seconds is None else ahead * self.mean_seconds / max(1, slots)

    def come_back_seconds(self, now: float, *, queued: int, slots: int, loading_since: float | None) -> float:
        """What a request that found the queue full is told: when there will be a place in it for this one.

        Each that is refused is promised a place of its own, one service apart, so they do not all come back at once;
        nobody is told more than it takes to empty the queue twice.
        """
        load_left = self._load_left(now, loading_since)
        if self.mean_seconds is None:
            return max(load_left, limits.retry_after_seconds)
        step = self.mean_seconds / max(1, slots)
        self._promised_until = max(self._promised_until, now + load_left) + step
        at_most = load_left + 2 * (queued + slots) * step
        self._promised_until = min(self._promised_until, now + at_most)
        seconds = self._promised_until - now
        return min(max(seconds, limits.retry_after_seconds), limits.retry_after_seconds_max)

    def _load_left(self, now: float, loading_since: float | None) -> float:
        if loading_since is None:
            return 0.0
        if self.load_seconds is None:
            return limits.loading_retry_seconds
        return max(limits.retry_after_seconds, loading_since + self.load_seconds - now)
