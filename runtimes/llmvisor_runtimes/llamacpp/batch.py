"""Which tokens of which sequence are computed together in the next step. Pure.

Every sequence has tokens that are not computed yet: one where it decodes, many where its prompt is still to be read.
Those with one go first, each step, so that nobody who streams waits for somebody's long prompt; what room is left goes
to the prompts in equal parts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

GroupT = TypeVar("GroupT", bound=Hashable)


class Slice(NamedTuple):
    """The next `length` tokens of the sequence at `place` in what was composed from."""

    place: int
    length: int


def compose(pending: Sequence[int], *, n_batch: int, prefill_tokens_max: int, turn: int) -> list[Slice]:
    """The slices of the next step.

    `pending[i]` counts the tokens of sequence i that are not computed yet; 0 leaves it out. A step holds `n_batch`
    tokens at most. Where somebody decodes, prompts get at most `prefill_tokens_max` of them together (at least one,
    where there is room). `turn` counts the steps: it decides who comes first where not all can, so that each comes
    in turn.
    """
    decoding = [place for place, count in enumerate(pending) if count == 1]
    prefilling = [place for place, count in enumerate(pending) if count > 1]
    if len(decoding) > n_batch:
        decoding = _rotated(decoding, turn)[:n_batch]
    slices = [Slice(place, 1) for place in decoding]
    room = n_batch - len(slices)
    if decoding:
        room = min(room, max(1, prefill_tokens_max))
    if room > 0 and prefilling:
        order = _rotated(prefilling, turn)
        parts = divide([pending[place] for place in order], room)
        slices += [Slice(place, part) for place, part in zip(order, parts, strict=True) if part]
    return slices


def divide(wants: Sequence[int], room: int) -> list[int]:
    """Shares of `room`: as equal as can be, nobody gets more than it wants, nothing is left while somebody wants.

    Earlier ones get the odd token.
    """
    shares: list[int] = [0] * len(wants)
    hungry: list[int] = [place for place, want in enumerate(wants) if want > 0]
    while room and hungry:
        part = room // len(hungry)
        served = hungry if part else hungry[:room]
        for place in served:
            given = min(wants[place] - shares[place], part or 1)
            shares[place] += given
            room -= given
        hungry = [place for place in hungry if shares[place] < wants[place]]
    return shares


def _rotated(places: list[int], turn: int) -> list[int]:
    if len(places) < 2:
        return places
    start = turn % len(places)
    return places[start:] + places[:start]


class Turns(Generic[GroupT]):
    """Which of several groups computes next, where they cannot share a batch.

    A turn is `steps` long, because changing costs; then the one comes that has waited longest.
    """

    def __init__(self, *, steps: int) -> None:
        self._steps = steps
        self._left = 0
        self._order: list[GroupT] = []
        """Those known, in the order in which they are due; the first has its turn."""

    def next(self, groups: Iterable[GroupT]) -> GroupT:
        """One of these; there has to be one."""
        here = dict.fromkeys(groups)
        before = self._order[:1]
        self._order = [group for group in self._order if group in here]
        self._order += [group for group in here if group not in self._order]
        if self._order[:1] == before and self._left == 0:
            self._order.append(self._order.pop(0))
        if self._order[:1] != before or self._left == 0:
            self._left = self._steps
        self._left -= 1
        return self._order[0]
