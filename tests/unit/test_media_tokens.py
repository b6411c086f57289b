"""Images among tokens: where a sequence may be cut, and which positions its tokens have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmvisor_runtimes.llamacpp.kvcache import KvCache, Match
from llmvisor_runtimes.llamacpp.media_tokens import boundary, has_media, position, unit_tokens

PARTS = st.lists(
    st.one_of(
        st.integers(0, 50_000),
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.booleans()),
    ),
    max_size=12,
)
"""Tokens, and units: a number, places, and whether these share positions."""


def laid_out(parts: list[int | tuple[int, int, bool]]) -> tuple[list[int], list[int], list[int]]:
    """The tokens, where they may be cut, and the position at each of these places."""
    tokens: list[int] = []
    cuts, positions = [0], [0]
    at = 0
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
            at += 1
        else:
            serial, length, shares = part
            # The same number stands for the same size always.
            taken = (length + 1) // 2 if shares else length
            tokens += unit_tokens(serial * 100 + length * 2 + shares, length, taken)
            at += taken
        cuts.append(len(tokens))
        positions.append(at)
    return tokens, cuts, positions


@given(PARTS)
def test_sequence_is_cut_between_its_parts_alone(parts: list[int | tuple[int, int, bool]]) -> None:
    """For each length: the last place before it that is inside no unit."""
    tokens, cuts, _ = laid_out(parts)
    for length in range(len(tokens) + 1):
        assert boundary(tokens, length) == max(cut for cut in cuts if cut <= length)


@given(PARTS)
def test_positions_count_what_units_take(parts: list[int | tuple[int, int, bool]]) -> None:
    """At each place where a sequence may be cut."""
    tokens, cuts, positions = laid_out(parts)
    assert [position(tokens, cut) for cut in cuts] == positions
    assert has_media(tokens) == any(not isinstance(part, int) for part in parts)


def test_position_inside_a_unit() -> None:
    """Of places with positions of their own each has one; places that share them are one place."""
    ordered, shared = [7, *unit_tokens(1, 4, 4)], [7, *unit_tokens(2, 4, 2), 8]
    assert [position(ordered, length) for length in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [position(shared, length) for length in range(7)] == [0, 1, 1, 1, 1, 3, 4]


def test_units_of_the_largest_size_keep_their_numbers_apart() -> None:
    """Size and positions do not run into the number."""
    most = (1 << 20) - 1
    tokens = unit_tokens(9, most, most)
    assert len(tokens) == most
    assert boundary(tokens, most) == most
    assert boundary(tokens, most - 1) == 0
    assert tokens[0] not in {unit_tokens(8, most, most)[0], unit_tokens(9, most - 1, most)[0], tokens[1]}


class _Memory:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def remove(self, sequence: int, start: int) -> None:
        self.calls.append(("remove", sequence, start))

    def copy(self, source: int, target: int, stop: int) -> None:
        self.calls.append(("copy", source, target, stop))

    def save(self, sequence: int) -> bytearray:
        return bytearray(b"state")

    def restore(self, sequence: int, state: bytearray) -> bool:
        return True


PROMPT = [5, 6, *unit_tokens(1, 4, 2), 7, 8]


def books_with_idle(tokens: list[int]) -> tuple[KvCache, _Memory]:
    memory = _Memory()
    kv = KvCache(memory, cells=64, sequences=4)
    sequence = kv.open(Match(None, 0))
    assert sequence == 0
    kv.extend(sequence, tokens)
    kv.close(sequence, keep=True)
    return kv, memory


def test_prefix_that_ends_in_an_image_is_shared_up_to_it() -> None:
    """One token of it may not come from the cache: none does."""
    kv, _ = books_with_idle(PROMPT)
    assert kv.match(PROMPT, 5).length == 2
    assert kv.match(PROMPT, 6).length == 6
    assert kv.match([*PROMPT[:6], 9], 6).length == 6
    assert kv.match([5, 6, *unit_tokens(2, 4, 2), 7], 6).length == 2


def test_memory_is_addressed_by_positions() -> None:
    """Four places that take two positions: what follows stands two positions earlier than its place."""
    kv, memory = books_with_idle(PROMPT)
    target = kv.open(kv.match([*PROMPT[:7], 9], 7))
    assert target == 1
    assert memory.calls == [("copy", 0, 1, 5)]
    kv.extend(target, [9, 9])
    kv.cut(target, 8)
    assert memory.calls[-1] == ("remove", 1, 6)


def test_image_that_is_computed_half_is_forgotten_wholly() -> None:
    """Ended or aborted in the middle of it: the sequence ends before it."""
    kv, memory = books_with_idle(PROMPT[:4])
    assert memory.calls == [("remove", 0, 2)]
    assert kv.tokens(0) == [5, 6]
    sequence = kv.open(Match(None, 0))
    assert sequence is not None
    kv.extend(sequence, PROMPT[:5])
    assert kv.repair(sequence) == 2
    assert memory.calls[-1] == ("remove", sequence, 2)
    assert kv.used == 4


def test_sequences_with_images_are_not_saved() -> None:
    """Their numbers mean nothing in another process."""
    text = list(range(40))
    kv, _ = books_with_idle([*text, *PROMPT[2:6]])
    assert list(kv.saved()) == []
    kv, _ = books_with_idle(text)
    assert [parked.tokens for parked in kv.saved()] == [text]
