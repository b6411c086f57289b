"""Who waits and who has a slot.

Choices wait in the order in which they came, get a slot when there is one and room in the KV cache, and keep it until
they end. When the cache is full the youngest goes back to waiting and is computed again later; nobody fails for it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from operator import attrgetter

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.choice import Choice
from llmvisor_runtimes.llamacpp.kvcache import KvCache, Match
from llmvisor_runtimes.llamacpp.media_tokens import boundary
from llmvisor_runtimes.prefill import common_prefix

_AGE: Callable[[Choice], int] = attrgetter("age")


class Admission:
    """The choices under way, and their sequences of the KV cache. `paused` holds ids of requests."""

    def __init__(self, kv: KvCache, *, slots: int) -> None:
        self.waiting: list[Choice] = []
        self.active: list[Choice] = []
        """Those with a slot."""
        self.paused: set[int] = set()
        self.changed = False
        """Something has changed since nobody else could be admitted."""
        self._kv = kv
        self._slots = slots

    @property
    def due(self) -> bool:
        """Somebody waits who may be let in now."""
        return self.changed and bool(self.waiting)

    def running(self) -> list[Choice]:
        """Those with a slot who are not paused."""
        if not self.paused:
            return self.active
        return [choice for choice in self.active if choice.request.id not in self.paused]

    def add(self, choices: Iterable[Choice]) -> None:
        """New choices wait behind all others."""
        self.waiting += choices
        self.changed = True

    def admit(self) -> list[Choice]:
        """Give slots to those that wait, in order; one that waits for room is never overtaken.

        Gives those of which nothing is wanted, which have left.
        """
        self.changed = False
        unwanted: list[Choice] = []
        for choice in list(self.waiting):
            if len(self.active) >= self._slots:
                break
            if not choice.wants_token and not choice.echo_due:
                self.waiting.remove(choice)
                unwanted.append(choice)
                continue
            if choice.request.id in self.paused:
                continue
            if not self._admit_one(choice):
                break
        return unwanted

    def leave(self, choice: Choice, *, keep: bool) -> None:
        """A choice has ended; `keep` leaves what it had in the KV cache."""
        choice.sampler.close()
        if choice.drafter is not None:
            choice.drafter.close()
        if choice.sequence >= 0:
            self._kv.close(choice.sequence, keep=keep)
            choice.sequence = -1
            self.active.remove(choice)
        elif choice in self.waiting:
            self.waiting.remove(choice)
        self.changed = True

    def preempt_one(self) -> None:
        """The youngest makes room: first of those that are paused, which wait anyway."""
        paused = [choice for choice in self.active if choice.request.id in self.paused]
        self.preempt(max(paused or self.active, key=_AGE))

    def preempt(self, choice: Choice) -> None:
        """Send a choice back to wait, where it stood."""
        self.active.remove(choice)
        self._kv.drop(choice.sequence)
        choice.sequence, choice.computed = -1, 0
        bisect.insort(self.waiting, choice, key=_AGE)

    def _admit_one(self, choice: Choice) -> bool:
        """Whether the next one may be looked at."""
        wanted = choice.tokens, choice.reuse_max, choice.request.adapters
        self._kv.recall(*wanted)
        if not self.active:
            self._kv.park_all(*wanted)
        match = self._kv.match(*wanted)
        if self._prefix_is_coming(choice, match):
            self.changed = True
            return True
        return self._open(choice, match)

    def _open(self, choice: Choice, match: Match) -> bool:
        # What is being computed already has to find room too, and some steps beyond, or it would drive this one out.
        spare = sum(active.pending + limits.admission_spare_tokens for active in self.active)
        if not self._kv.fits(choice.tokens, match, spare):
            return False
        sequence = self._kv.open(match, choice.request.adapters)
        if sequence is None:
            return False
        choice.sequence, choice.computed = sequence, match.length
        if choice.request.cached_tokens is None:
            choice.request.cached_tokens = min(match.length, len(choice.request.prompt))
        self.waiting.remove(choice)
        self.active.append(choice)
        return True

    def _prefix_is_coming(self, choice: Choice, match: Match) -> bool:
        """Whether somebody is computing a longer common beginning than the cache has: it is worth waiting for."""
        for active in self.running():
            if active.pending <= 1 or active.request.adapters != choice.request.adapters:
                continue
            if active.request is choice.request and choice.request.scores_prompt:
                return True
            shared = boundary(choice.tokens, min(choice.reuse_max, common_prefix(active.tokens, choice.tokens)))
            if shared >= match.length + limits.awaited_prefix_tokens_min and active.computed < shared:
                return True
        return False
