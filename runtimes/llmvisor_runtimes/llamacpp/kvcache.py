"""What is where in the unified KV cache. Pure: the memory itself is changed through `KvMemory`.

A cell holds the keys and values of one token at one position. Sequences share cells: a copy of a prefix takes none.
A sequence is *busy* while somebody computes with it, and *idle* afterwards: kept as cache, for prompts that begin the
same way, until its cells or its id are needed, least recently used first. While others decode, idle ones are moved
out of the context one by one (`parked.py`), and come back when they are wanted. No sequence is cut inside an image
(`media_tokens.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.media_tokens import boundary, has_media, position
from llmvisor_runtimes.llamacpp.parked import AdapterSet, Parked, ParkedSequences
from llmvisor_runtimes.prefill import common_prefix


class KvMemory(Protocol):
    """The engine's own memory, by sequence id and position."""

    def remove(self, sequence: int, start: int) -> None:
        """Forget the positions from `start` on."""
        ...

    def copy(self, source: int, target: int, stop: int) -> None:
        """Let `target` share the positions of `source` before `stop`."""
        ...

    def save(self, sequence: int) -> bytearray:
        """All that is needed to have a sequence again; empty where that cannot be."""
        ...

    def restore(self, sequence: int, state: bytearray) -> bool:
        """Have it again under this id; False where there is no room."""
        ...


class Match(NamedTuple):
    """The resident sequence that begins most like a prompt does, and how many tokens are the same."""

    sequence: int | None
    length: int


class _Resident:
    __slots__ = ("adapters", "busy", "cells", "has_media", "parkable", "tokens", "used")

    def __init__(
        self, tokens: list[int], cells: list[int], used: int, adapters: AdapterSet, *, has_media: bool = False
    ) -> None:
        self.adapters = adapters
        self.has_media = has_media
        self.tokens = tokens
        self.cells = cells
        self.used = used
        self.busy = True
        self.parkable = True

    def position(self, length: int) -> int:
        """Where the token after the first `length` stands."""
        return position(self.tokens, length) if self.has_media else length


class KvCache:
    """Books for `cells` cells and the sequence ids 0 … `sequences` - 1.

    `can_cut` is False for engines that cannot forget the end of a sequence (recurrent models): then only whole idle
    sequences are continued. Without `parked` idle sequences stay in the context.
    """

    def __init__(
        self,
        memory: KvMemory,
        *,
        cells: int,
        sequences: int,
        can_cut: bool = True,
        parked: ParkedSequences | None = None,
    ) -> None:
        self.cells = cells
        self._parked = parked if can_cut else None
        self._memory = memory
        self.can_cut = can_cut
        self._free_cells = list(range(cells - 1, -1, -1))
        self._holders = np.zeros(cells, np.int32)
        self._busy_holders = np.zeros(cells, np.int32)
        self._idle_cells = 0
        self._free_ids = list(range(sequences - 1, -1, -1))
        self._residents: dict[int, _Resident] = {}
        self._clock = 0

    # ------------------------------------------------------------------------------------------------------- reading

    @property
    def used(self) -> int:
        """Cells that hold something, idle cache included."""
        return self.cells - len(self._free_cells)

    @property
    def room(self) -> int:
        """Cells that are free or can be made free without touching a busy sequence."""
        return len(self._free_cells) + self._idle_cells

    @property
    def free(self) -> int:
        """Cells that hold nothing."""
        return len(self._free_cells)

    @property
    def idle(self) -> list[int]:
        """Idle sequences, least recently used first."""
        found = [(resident.used, sequence) for sequence, resident in self._residents.items() if not resident.busy]
        return [sequence for _, sequence in sorted(found)]

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return len(self._residents[sequence].tokens)

    def tokens(self, sequence: int) -> list[int]:
        """What a sequence holds."""
        return self._residents[sequence].tokens

    def match(self, tokens: Sequence[int], reuse_max: int, adapters: AdapterSet = ()) -> Match:
        """The best beginning that is here for `tokens`, of at most `reuse_max` tokens. Idle ones win a draw.

        Only what was computed with the same adapters is the same.
        """
        best = Match(None, 0)
        best_rank = (0, False, 0)
        for sequence, resident in self._residents.items():
            if resident.adapters != adapters:
                continue
            length = boundary(tokens, min(reuse_max, common_prefix(resident.tokens, tokens)))
            if not self.can_cut and (resident.busy or length < len(resident.tokens)):
                continue
            rank = (length, not resident.busy, resident.used)
            if length and rank > best_rank:
                best, best_rank = Match(sequence, length), rank
        return best

    def fits(self, tokens: Sequence[int], match: Match, spare: int) -> bool:
        """Whether `tokens` can be computed from `match` on, with `spare` cells left over."""
        free = self.room
        if match.sequence is not None:
            # Idle cells that are going to be shared cannot also be taken.
            shared = self._residents[match.sequence].cells[: match.length]
            free -= int(np.count_nonzero(self._busy_holders[shared] == 0))
        return len(tokens) - match.length + spare <= free

    # ------------------------------------------------------------------------------------------------------ changing

    def open(self, match: Match, adapters: AdapterSet = ()) -> int | None:
        """A busy sequence that holds what `match` found for these adapters; None where every id is busy.

        An idle sequence that is wholly part of it is continued in place. Otherwise its prefix is shared with a fresh
        id, so that it stays cached with its own ending.
        """
        source = match.sequence
        if source is not None:
            resident = self._residents[source]
            resident.used = self._tick()  # it must not be the one that makes way
            if not resident.busy and match.length == len(resident.tokens):
                self._set_busy(resident, True)
                return source
        target = self._take_id(spared=source)
        if target is None:
            return self._cut_in_place(match)
        tokens: list[int] = []
        cells: list[int] = []
        media = False
        if source is not None:
            resident = self._residents[source]
            tokens, cells = resident.tokens[: match.length], resident.cells[: match.length]
            media = resident.has_media
            self._memory.copy(source, target, resident.position(match.length))
        self._residents[target] = _Resident(tokens, cells, self._tick(), adapters, has_media=media)
        self._count(cells, holders=1, busy=1)
        return target

    def make_room(self, count: int) -> bool:
        """Have `count` cells free, at the cost of idle sequences; False where that is not enough."""
        if count <= len(self._free_cells):
            return True
        for sequence in self.idle if count <= self.room else []:
            self._evict(sequence)
            if count <= len(self._free_cells):
                return True
        return False

    def extend(self, sequence: int, tokens: Sequence[int]) -> None:
        """A busy sequence has been computed `tokens` further; there has to be room."""
        resident = self._residents[sequence]
        assert resident.busy
        assert len(tokens) <= len(self._free_cells)
        if tokens and not resident.has_media and min(tokens) < 0:
            resident.has_media = True
        for token in tokens:
            cell = self._free_cells.pop()
            self._holders[cell] = self._busy_holders[cell] = 1
            resident.cells.append(cell)
            resident.tokens.append(token)

    def cut(self, sequence: int, length: int) -> None:
        """Forget the tokens of a busy sequence from `length` on."""
        resident = self._residents[sequence]
        if length < len(resident.tokens):
            self._memory.remove(sequence, resident.position(length))
            self._release(resident, length)

    def close(self, sequence: int, *, keep: bool) -> None:
        """Nobody computes with a sequence any more; `keep` leaves it as cache."""
        resident = self._residents[sequence]
        whole = boundary(resident.tokens, len(resident.tokens))
        if not keep or not whole or (whole < len(resident.tokens) and not self.can_cut):
            self.drop(sequence)
            return
        self.cut(sequence, whole)
        self._set_busy(resident, False)
        resident.used = self._tick()
        for other in self.idle:
            inside = self._residents[other]
            same = inside.adapters == resident.adapters and other != sequence
            if same and resident.tokens[: len(inside.tokens)] == inside.tokens:
                self.drop(other)  # everything it could serve, this one can

    def drop(self, sequence: int) -> None:
        """Forget a sequence wholly, busy or idle."""
        resident = self._residents.pop(sequence)
        self._memory.remove(sequence, 0)
        self._release(resident, 0)
        self._free_ids.append(sequence)

    def trim(self) -> None:
        """Forget what is parked: that alone takes memory of its own."""
        if self._parked is not None:
            self._parked.clear()

    def park_one(self) -> None:
        """Move the least recently used idle sequence that can be out of the way of those that decode."""
        if self._idle_cells:
            self._park_some(self.idle, count=1)

    def park_all(self, tokens: Sequence[int], reuse_max: int, adapters: AdapterSet = ()) -> None:
        """Move the idle sequences out, but for the one that `tokens` continue: a prompt then gets the first cells.

        A step passes over all cells up to the last one that is used, and threads share them out in equal parts.
        """
        if self._parked is None:
            return
        match = self.match(tokens, reuse_max, adapters)
        spared = match.sequence if match.length >= self._parked.gain_tokens_min else None
        self._park_some([sequence for sequence in self.idle if sequence != spared], count=self.cells)

    def recall(self, tokens: Sequence[int], reuse_max: int, adapters: AdapterSet = ()) -> None:
        """Bring a parked sequence back, as an idle one, where it begins more like `tokens` than all that is here."""
        found = self._parked.best(tokens, reuse_max, adapters) if self._parked is not None else None
        if self._parked is None or found is None:
            return
        parked, length = found
        if length < self.match(tokens, reuse_max, adapters).length + self._parked.gain_tokens_min:
            return
        if not self.make_room(len(parked.tokens)):
            return
        sequence = self._take_id(spared=None)
        if sequence is None:
            return
        self._parked.take(parked)
        self._free_ids.append(sequence)
        self._bring_back(parked)

    def saved(self) -> Iterator[Parked]:
        """What can be had again, idle or parked, the one used last first."""
        for sequence in reversed(self.idle):
            resident = self._residents[sequence]
            if _outlives_process(resident.tokens) and (state := self._memory.save(sequence)):
                yield Parked(resident.tokens, state, resident.adapters)
        if self._parked is not None:
            yield from (parked for parked in reversed(self._parked.kept) if _outlives_process(parked.tokens))

    def restore(self, saved: Sequence[Parked]) -> None:
        """Have sequences of an earlier process again, the one used last first, as far as there is room."""
        if self._parked is not None:
            for parked in reversed(saved):
                self._parked.keep(parked)
            return
        for parked in saved:
            if len(parked.tokens) > len(self._free_cells) or len(self._free_ids) < 2:
                return
            self._bring_back(parked)

    def repair(self, sequence: int) -> int:
        """Make the memory forget what a computation that failed may have left behind; gives the tokens that are left.

        They are fewer than before where that was inside an image, whose places can share one position.
        """
        resident = self._residents[sequence]
        length = boundary(resident.tokens, len(resident.tokens))
        self._memory.remove(sequence, resident.position(length))
        self._release(resident, length)
        return length

    # ------------------------------------------------------------------------------------------------------- helpers

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _park_some(self, idle: Sequence[int], *, count: int) -> None:
        for sequence in idle:
            resident = self._residents[sequence]
            if self._parked is None or count == 0:
                return
            if resident.parkable:
                count -= 1
                resident.parkable = self._park(sequence)
                if resident.parkable:
                    self.drop(sequence)

    def _park(self, sequence: int) -> bool:
        """Keep a copy of a sequence outside the context."""
        resident = self._residents[sequence]
        return self._parked is not None and self._parked.put(
            list(resident.tokens), lambda: self._memory.save(sequence), resident.adapters
        )

    def _bring_back(self, parked: Parked) -> None:
        """Have a sequence in the context again, idle; there has to be room and an id."""
        sequence = self._free_ids.pop()
        if not self._memory.restore(sequence, parked.state):
            self._memory.remove(sequence, 0)
            self._free_ids.append(sequence)
            return
        self._residents[sequence] = _Resident([], [], self._tick(), parked.adapters)
        self.extend(sequence, parked.tokens)
        self._set_busy(self._residents[sequence], False)

    def _evict(self, sequence: int) -> None:
        """Give up an idle sequence's place."""
        self._park(sequence)
        self.drop(sequence)

    def _take_id(self, spared: int | None) -> int | None:
        if not self._free_ids:
            victims = [sequence for sequence in self.idle if sequence != spared]
            if not victims:
                return None
            self._evict(victims[0])
        return self._free_ids.pop()

    def _cut_in_place(self, match: Match) -> int | None:
        source = match.sequence
        if source is None or self._residents[source].busy:
            return None
        resident = self._residents[source]
        self._memory.remove(source, resident.position(match.length))
        self._set_busy(resident, True)
        self._release(resident, match.length)
        return source

    def _set_busy(self, resident: _Resident, busy: bool) -> None:
        resident.busy = busy
        resident.parkable = True
        self._count(resident.cells, holders=0, busy=1 if busy else -1)

    def _release(self, resident: _Resident, start: int) -> None:
        """Give up the cells from `start` on; what nobody else holds is free."""
        self._count(resident.cells[start:], holders=-1, busy=-1 if resident.busy else 0)
        del resident.cells[start:], resident.tokens[start:]

    def _count(self, cells: Sequence[int], *, holders: int, busy: int) -> None:
        if not cells:
            return
        places = np.array(cells)
        held, busy_held = self._holders[places], self._busy_holders[places]
        was_idle = np.count_nonzero((held > 0) & (busy_held == 0))
        held += holders
        busy_held += busy
        self._holders[places], self._busy_holders[places] = held, busy_held
        self._idle_cells += int(np.count_nonzero((held > 0) & (busy_held == 0)) - was_idle)
        if holders < 0:
            self._free_cells += places[held == 0].tolist()


def _outlives_process(tokens: Sequence[int]) -> bool:
    """Whether a sequence is worth a file. Numbers of images are this process's own."""
    return len(tokens) >= limits.parked_gain_tokens_min and not has_media(tokens)
