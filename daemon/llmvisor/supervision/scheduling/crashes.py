"""What the crash of a worker leads to: another start, and when, or none; and which request is to blame. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from llmvisor import limits
from llmvisor.supervision.scheduling.poison import Crash, CrashKind, PoisonRule
from llmvisor.supervision.scheduling.restart import RestartLimits, RestartPolicy


class Verdict(msgspec.Struct, frozen=True):
    """On a crash of a worker that served."""

    delay_seconds: float | None
    """Until the next start; None gives the model up."""
    poison: frozenset[int] = frozenset()
    """Requests that are to blame."""


class Crashes:
    """The crashes of one model's workers."""

    def __init__(self, policy: RestartPolicy, poison: PoisonRule) -> None:
        self.at = 0.0
        """When a worker that served last crashed."""
        self._policy = policy
        self._poison = poison
        self._has_loaded = False
        self._killed_loads = 0
        """In a row."""
        self._blamed = 0
        """Requests, in a row."""

    def loaded(self) -> None:
        """A worker serves."""
        self._has_loaded, self._killed_loads = True, 0

    def configure(self, allowed: RestartLimits) -> None:
        """Other limits hold from now on."""
        self._policy.configure(allowed)

    def served(self) -> None:
        """A request has come to its end in a worker: the model works."""
        self._blamed = 0

    def reset(self) -> None:
        """Forget them all."""
        self._policy.reset()
        self._blamed = 0
        self._has_loaded, self._killed_loads = False, 0

    def at_load(self, now: float, kind: CrashKind, *, permanent: bool) -> float | None:
        """A worker ended before it served. Gives the seconds until the next start; None gives the model up."""
        self._killed_loads = 0 if kind == "fault" else self._killed_loads + 1
        return None if permanent else self._policy.crashed(now, served_seconds=0.0)

    @property
    def load_says_nothing(self) -> bool:
        """Whether the last load that failed tells nothing of the model, so that new requests may wait for the next: it
        was killed from outside, and the model has loaded before, or it was the first time."""
        return self._killed_loads == 1 or (self._killed_loads > 1 and self._has_loaded)

    def serving(
        self, now: float, inside: Collection[int], crash: Crash, *, served_seconds: float, permanent: bool
    ) -> Verdict:
        """A worker ended that served, with these requests inside.

        A crash that is blamed on a request spends no restart, and neither does one with suspects inside, which blames
        some: the requests that were inside bound both. But a model in which one request after the other is to blame,
        and none is served, is at fault itself. Where the restarts are spent, requests that were inside at every one of
        the crashes are to blame.
        """
        self.at = now
        poison = self._poison.crashed(inside, crash)
        if permanent:
            return Verdict(None, poison)
        works = self._blamed < limits.poison_in_a_row_max
        if not poison or not works:
            blames = crash.kind != "outside"
            excused = works and blames and not self._poison.suspects.isdisjoint(inside)
            delay = self._policy.crashed(now, served_seconds=served_seconds, inside=frozenset(inside), excused=excused)
            if delay is None and works:
                poison = self._policy.inside_all()
            if not poison or not works:
                return Verdict(delay, poison)
        got_on = bool(crash.progressed - poison)  # others did, so the model works
        self._blamed = len(poison) + (0 if got_on else self._blamed)
        self._policy.forgive(poison)
        self._poison.forget(*poison)
        return Verdict(0.0, poison)
