"""The books of the KV cache against a memory that works as llama.cpp's does."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from llmvisor_runtimes.llamacpp.kvcache import KvCache, Match
from llmvisor_runtimes.llamacpp.parked import ParkedSequences
from llmvisor_runtimes.prefill import common_prefix


class Memory:
    """Cells as llama.cpp keeps them: a position and the set of sequences that share it."""

    def __init__(self, cells: int) -> None:
        self.size = cells
        self.cells: list[tuple[int, set[int]]] = []

    def remove(self, sequence: int, start: int) -> None:
        for position, holders in self.cells:
            if position >= start:
                holders.discard(sequence)
        self.cells = [cell for cell in self.cells if cell[1]]

    def copy(self, source: int, target: int, stop: int) -> None:
        for position, holders in self.cells:
            if position < stop and source in holders:
                holders.add(target)

    def compute(self, sequence: int, count: int) -> None:
        start = len(self.positions(sequence))
        self.cells += [(start + step, {sequence}) for step in range(count)]
        assert len(self.cells) <= self.size, "llama_decode would have found no room"

    def save(self, sequence: int) -> bytearray:
        return bytearray(len(self.positions(sequence)))

    def restore(self, sequence: int, state: bytearray) -> bool:
        self.compute(sequence, len(state))
        return True

    def positions(self, sequence: int) -> list[int]:
        return sorted(position for position, holders in self.cells if sequence in holders)


class Books:
    """A cache and a memory that are used together."""

    def __init__(
        self, cells: int = 100, sequences: int = 4, *, can_cut: bool = True, parked: ParkedSequences | None = None
    ) -> None:
        self.memory = Memory(cells)
        self.kv = KvCache(self.memory, cells=cells, sequences=sequences, can_cut=can_cut, parked=parked)

    def open(self, tokens: list[int]) -> int | None:
        """A sequence for a prompt, with what the cache has of it."""
        return self.kv.open(self.kv.match(tokens, len(tokens) - 1))

    def feed(self, sequence: int, tokens: list[int]) -> None:
        """Compute tokens as an engine does."""
        assert self.kv.make_room(len(tokens))
        self.memory.compute(sequence, len(tokens))
        self.kv.extend(sequence, tokens)

    def run(self, tokens: list[int], *, keep: bool = True) -> int:
        """Compute a whole prompt and end it; gives its sequence id."""
        sequence = self.open(tokens)
        assert sequence is not None
        self.feed(sequence, tokens[self.kv.length(sequence) :])
        self.kv.close(sequence, keep=keep)
        return sequence


def test_ended_sequence_is_reused_in_place_when_its_text_goes_on() -> None:
    """The next turn of a conversation computes only what is new and takes no second id."""
    books = Books()
    first = books.run([1, 2, 3, 4])
    match = books.kv.match([1, 2, 3, 4, 5, 6], 5)
    assert match == Match(first, 4)
    assert books.kv.open(match) == first
    assert books.kv.used == 4


def test_prefix_of_a_sequence_is_shared_without_taking_cells() -> None:
    """Two prompts with a common beginning hold its cells once, and the first keeps its own ending."""
    books = Books()
    books.run([1, 2, 3, 4, 5])
    second = books.open([1, 2, 3, 9])
    assert second is not None
    assert books.kv.length(second) == 3
    assert books.kv.used == 5
    books.feed(second, [9])
    assert books.kv.used == 6
    assert books.kv.match([1, 2, 3, 4, 5, 6], 5).length == 5


def test_prefix_of_a_busy_sequence_is_shared() -> None:
    """A system prompt that somebody else is using at the moment need not be computed again."""
    books = Books()
    busy = books.open([1, 2, 3, 4])
    assert busy is not None
    books.feed(busy, [1, 2, 3, 4])
    other = books.open([1, 2, 3, 4, 5])
    assert other not in (None, busy)
    assert books.kv.length(busy) == 4
    assert books.kv.used == 4


def test_last_token_of_a_prompt_is_always_computed() -> None:
    """A prompt that is cached wholly still needs the logits of its last token."""
    books = Books()
    books.run([1, 2, 3])
    assert books.kv.match([1, 2, 3], 2).length == 2


def test_least_recently_used_idle_sequence_makes_room() -> None:
    """Room comes from who was not used for longest; a use of the oldest spares it."""
    books = Books(cells=12, sequences=4)
    books.run([1] * 4)
    books.run([2] * 4)
    books.run([3] * 4)
    touched = books.open([1] * 5)
    assert touched is not None
    books.kv.close(touched, keep=True)
    assert books.kv.make_room(4)
    assert books.kv.match([2] * 5, 4).length == 0
    assert books.kv.match([1] * 5, 4).length == 4
    assert books.kv.match([3] * 5, 4).length == 4


def test_busy_sequences_are_never_evicted() -> None:
    """Where everything is busy there is no room, and nothing is lost by asking."""
    books = Books(cells=8)
    busy = books.open([1] * 8)
    assert busy is not None
    books.feed(busy, [1] * 8)
    assert not books.kv.make_room(1)
    assert books.kv.length(busy) == 8


def test_request_for_more_room_than_there_can_be_evicts_nobody() -> None:
    """Idle cache is not thrown away for a step that cannot be done anyway."""
    books = Books(cells=8)
    busy = books.open([1] * 6)
    assert busy is not None
    books.feed(busy, [1] * 6)
    books.run([2] * 2)
    assert not books.kv.make_room(3)
    assert books.kv.match([2] * 3, 2).length == 2


def test_fits_does_not_count_the_idle_cells_it_is_going_to_share() -> None:
    """Six idle cells cannot be both the prompt's beginning and room for its end."""
    books = Books(cells=10)
    books.run([1] * 6)
    match = books.kv.match([1] * 6 + [2] * 5, 10)
    assert match.length == 6
    assert not books.kv.fits([1] * 6 + [2] * 5, match, 0)
    assert books.kv.fits([1] * 6 + [2] * 4, match, 0)
    assert not books.kv.fits([1] * 6 + [2] * 4, match, 1)


def test_without_free_ids_an_idle_sequence_is_cut_in_place() -> None:
    """The only other id is the one that matches: it gives up its own ending."""
    books = Books(sequences=1)
    books.run([1, 2, 3, 4])
    sequence = books.open([1, 2, 7])
    assert sequence == 0
    assert books.kv.length(0) == 2
    assert books.memory.positions(0) == [0, 1]


def test_open_gives_nothing_where_every_id_is_busy() -> None:
    """There is one id, and it is in use."""
    books = Books(sequences=1)
    assert books.open([1]) == 0
    assert books.open([1]) is None


def test_memory_that_cannot_be_cut_is_only_continued_whole() -> None:
    """A recurrent state knows only its end: a sequence that goes another way begins anew."""
    books = Books(can_cut=False)
    books.run([1, 2, 3])
    assert books.kv.match([1, 2, 9], 2).length == 0
    assert books.kv.match([1, 2, 3, 9], 3).length == 3


def test_sequence_that_holds_another_wholly_replaces_it_in_the_cache() -> None:
    """Asking the same thing twice leaves one sequence behind, not two."""
    books = Books()
    books.run([1, 2, 3])
    books.run([1, 2, 3, 4])
    assert len(books.kv.idle) == 1
    assert books.kv.used == 4


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 300])
def test_common_prefix_counts_exactly_across_block_borders(length: int) -> None:
    """The first difference is found wherever it lies."""
    tokens = list(range(length))
    assert common_prefix([*tokens, -1], [*tokens, -2]) == length
    assert common_prefix(tokens, [*tokens, 5, 6]) == length
    assert common_prefix([*tokens, 5], tokens) == length


class KvCacheMachine(RuleBasedStateMachine):
    """Any order of calls: the books and the memory agree, and nothing that is busy is lost."""

    opened: Bundle[int] = Bundle("opened")

    def __init__(self) -> None:
        super().__init__()
        self.parked = ParkedSequences(bytes_max=40, bytes_per_token=1, gain_tokens_min=2)
        self.books = Books(cells=24, sequences=4, parked=self.parked)
        self.busy: dict[int, list[int]] = {}

    @rule(target=opened, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def open(self, tokens: list[int]) -> int:
        found = self.parked.best(tokens, len(tokens) - 1)
        here = self.books.kv.match(tokens, len(tokens) - 1).length
        self.books.kv.recall(tokens, len(tokens) - 1)
        match = self.books.kv.match(tokens, len(tokens) - 1)
        assert here <= match.length <= max(here, found[1] if found else 0), "recalling never costs a better match"
        fits = self.books.kv.fits(tokens, match, 0)
        sequence = self.books.kv.open(match)
        if sequence is None:
            assert len(self.busy) == 4
            return -1
        assert sequence not in self.busy
        assert self.books.kv.tokens(sequence) == tokens[: match.length]
        rest = tokens[match.length :]
        assert fits == self.books.kv.make_room(len(rest)), "`fits` foretells whether there is room"
        self.busy[sequence] = list(self.books.kv.tokens(sequence))
        if fits:
            self.books.feed(sequence, rest)
            self.busy[sequence] += rest
        return sequence

    @precondition(lambda self: self.busy)
    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6), pick=st.integers(0, 3))
    def compute(self, tokens: list[int], pick: int) -> None:
        sequence = sorted(self.busy)[pick % len(self.busy)]
        if self.books.kv.make_room(len(tokens)):
            self.books.feed(sequence, tokens)
            self.busy[sequence] += tokens
        else:
            assert self.books.kv.room < len(tokens)

    @rule()
    def park(self) -> None:
        idle = len(self.books.kv.idle)
        self.books.kv.park_one()
        assert idle - len(self.books.kv.idle) in {0, 1}

    @rule()
    def park_all(self) -> None:
        self.books.kv.park_all([0], 0)

    @invariant()
    def parked_is_bounded(self) -> None:
        assert self.parked.bytes <= 40

    @rule(sequence=consumes(opened), keep=st.booleans())
    def close(self, sequence: int, keep: bool) -> None:
        if self.busy.pop(sequence, None) is not None:
            self.books.kv.close(sequence, keep=keep)

    @rule(sequence=consumes(opened))
    def preempt(self, sequence: int) -> None:
        if self.busy.pop(sequence, None) is not None:
            self.books.kv.drop(sequence)

    @rule(count=st.integers(1, 30))
    def make_room(self, count: int) -> None:
        possible = self.books.kv.room >= count
        assert self.books.kv.make_room(count) == possible

    @invariant()
    def books_agree_with_memory(self) -> None:
        kv, memory = self.books.kv, self.books.memory
        assert kv.used == len(memory.cells) <= kv.cells
        for sequence in [*self.busy, *kv.idle]:
            assert memory.positions(sequence) == list(range(kv.length(sequence)))

    @invariant()
    def busy_sequences_hold_what_was_fed(self) -> None:
        for sequence, tokens in self.busy.items():
            assert self.books.kv.tokens(sequence) == tokens

    @invariant()
    def room_is_what_no_busy_sequence_holds(self) -> None:
        held = [cell for cell in self.books.memory.cells if cell[1] & self.busy.keys()]
        assert self.books.kv.room == self.books.kv.cells - len(held)


TestKvCacheStateful = KvCacheMachine.TestCase
TestKvCacheStateful.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_idle_sequence_moves_out_and_comes_back_when_its_text_does() -> None:
    """While others decode it takes no cells; a prompt that begins the same way gets all of it back."""
    books = Books(parked=ParkedSequences(bytes_max=400, bytes_per_token=1, gain_tokens_min=4))
    first = list(range(20))
    books.run(first)
    books.kv.park_one()
    assert (books.kv.used, books.kv.idle, books.memory.cells) == (0, [], [])
    books.run([99, 98])
    books.kv.recall([*first, 50], 20)
    assert books.kv.match([*first, 50], 20).length == 20


def test_idle_sequences_make_way_for_a_prompt_but_for_the_one_that_it_continues() -> None:
    """A prompt that starts alone gets the first cells; what it shares stays where it is."""
    books = Books(parked=ParkedSequences(bytes_max=400, bytes_per_token=1, gain_tokens_min=4))
    books.run(list(range(10)))
    second = books.run(list(range(50, 60)))
    books.kv.park_all([*range(50, 60), 7], 10)
    assert books.kv.idle == [second]
    assert books.kv.used == 10
    books.kv.park_all([50, 51, 52, 7, 7], 4)
    assert books.kv.idle == [], "three tokens are not worth their place"


def test_little_is_not_copied_back() -> None:
    """A parked sequence that would save less than a copy costs stays where it is."""
    books = Books(parked=ParkedSequences(bytes_max=400, bytes_per_token=1, gain_tokens_min=4))
    books.run([1, 2, 3, 4, 5, 6])
    books.kv.park_one()
    books.kv.recall([1, 2, 3, 9, 9, 9], 5)
    assert books.kv.idle == []


def test_large_sequence_stays_in_the_context() -> None:
    """Copying it would hold up those that stream."""
    books = Books(parked=ParkedSequences(bytes_max=40, bytes_per_token=1, gain_tokens_min=4))
    sequence = books.run(list(range(20)))
    books.kv.park_one()
    assert books.kv.idle == [sequence]


def test_sequences_evicted_for_room_are_parked_first() -> None:
    """What has to leave the context is not lost either."""
    books = Books(cells=24, parked=ParkedSequences(bytes_max=400, bytes_per_token=1, gain_tokens_min=4))
    books.run(list(range(20)))
    books.run([*range(100, 120)])
    books.kv.recall([*range(20), 7], 20)
    assert books.kv.match([*range(20), 7], 20).length == 20


def test_parked_sequences_are_bounded_and_forget_the_oldest() -> None:
    """Bytes are counted, and one that another contains goes first."""
    parked = ParkedSequences(bytes_max=40, bytes_per_token=1, gain_tokens_min=1)
    for start in (0, 100, 200, 300, 400):
        assert parked.put(list(range(start, start + 10)), lambda: bytearray(10))
    assert (len(parked), parked.bytes) == (4, 40)
    assert parked.best(list(range(10)), 10) is None
    assert parked.put([*range(100, 110)], lambda: bytearray(10)), "it is there already"
    assert len(parked) == 4


def test_state_that_cannot_be_saved_is_not_parked() -> None:
    """It stays in the context."""
    parked = ParkedSequences(bytes_max=40, bytes_per_token=1, gain_tokens_min=1)
    assert not parked.put([1, 2, 3], bytearray)
    assert len(parked) == 0


# ------------------------------------------------------------------------------------- guessed tokens, adapters, saved


def test_cut_gives_back_the_end_of_a_sequence_and_shared_cells_stay() -> None:
    """What was guessed wrong is forgotten here and in the memory; a copy of the prefix keeps its own."""
    books = Books(cells=20)
    first = books.kv.open(Match(None, 0))
    assert first is not None
    books.memory.compute(first, 8)
    books.kv.extend(first, [*range(8)])
    second = books.kv.open(Match(first, 6))
    assert second is not None
    books.kv.cut(first, 4)
    assert books.kv.tokens(first) == [0, 1, 2, 3]
    assert books.memory.positions(first) == [0, 1, 2, 3]
    assert books.memory.positions(second) == [*range(6)]
    assert books.kv.used == len(books.memory.cells) == 6
    books.kv.cut(first, 4)
    assert books.kv.free == 14


def test_sequences_of_other_adapters_are_no_match_and_replace_nobody() -> None:
    """The same tokens computed with another adapter are something else: here, parked and brought back."""
    parked = ParkedSequences(bytes_max=1_000, bytes_per_token=1, gain_tokens_min=1)
    books = Books(cells=40, parked=parked)
    tokens, loud = [*range(6)], (("loud", 1.0),)
    for adapters in ((), loud):
        sequence = books.kv.open(Match(None, 0), adapters)
        assert sequence is not None
        books.memory.compute(sequence, 6)
        books.kv.extend(sequence, tokens)
        books.kv.close(sequence, keep=True)
    assert len(books.kv.idle) == 2
    assert books.kv.match(tokens, 6, loud).length == 6
    assert books.kv.match(tokens, 6, (("loud", 0.5),)) == Match(None, 0)
    books.kv.park_one()
    books.kv.park_one()
    assert (len(parked), books.kv.used) == (2, 0)
    books.kv.recall(tokens, 6, (("loud", 0.5),))
    assert books.kv.used == 0
    books.kv.recall(tokens, 6, loud)
    assert books.kv.match(tokens, 6) == Match(None, 0)
    assert books.kv.match(tokens, 6, loud).length == 6


@pytest.mark.parametrize("with_parked", [True, False])
def test_saved_sequences_are_there_again(with_parked: bool) -> None:
    """The one used last first; without room for all in the context the others are left out."""

    def room() -> ParkedSequences | None:
        return ParkedSequences(bytes_max=1_000, bytes_per_token=1, gain_tokens_min=1) if with_parked else None

    books = Books(cells=200, parked=room())
    for start in (100, 200, 300):
        sequence = books.kv.open(Match(None, 0))
        assert sequence is not None
        books.memory.compute(sequence, 50)
        books.kv.extend(sequence, [*range(start, start + 50)])
        books.kv.close(sequence, keep=True)
    books.kv.park_one()
    saved = list(books.kv.saved())
    assert [parked.tokens[0] for parked in saved] == [300, 200, 100]
    again = Books(cells=120, parked=room())
    again.kv.restore(saved)
    found: list[int] = []
    for start in (300, 200, 100):
        tokens = [*range(start, start + 50)]
        again.kv.recall(tokens, 50)
        found.append(again.kv.match(tokens, 50).length)
    assert found == ([50, 50, 50] if with_parked else [50, 50, 0])


def test_sequence_that_leaves_twice_is_counted_once() -> None:
    """What makes room for a sequence on its way back may replace it among the parked: the bytes stay the true ones."""
    parked = ParkedSequences(bytes_max=400, bytes_per_token=1, gain_tokens_min=1)
    assert parked.put(list(range(10)), lambda: bytearray(10))
    found = parked.best(list(range(10)), 10)
    assert found is not None
    assert parked.put(list(range(12)), lambda: bytearray(12)), "which the first one is the beginning of"
    parked.take(found[0])
    assert (len(parked), parked.bytes) == (1, 12)
