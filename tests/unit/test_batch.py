"""The batch composer: who is computed next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmvisor_runtimes.llamacpp.batch import Slice, Turns, compose, divide
from llmvisor_runtimes.prefill import PrefillPace

PENDING = st.lists(st.integers(0, 5_000), max_size=40)


def test_compose_takes_decoding_sequences_first_and_bounds_the_prompt_beside_them() -> None:
    """Two who stream get their token; the prompt of 4,000 gets only what is allowed beside them."""
    slices = compose([1, 4_000, 1], n_batch=512, prefill_tokens_max=64, turn=0)
    assert slices == [Slice(0, 1), Slice(2, 1), Slice(1, 64)]


def test_compose_gives_a_prompt_alone_the_whole_batch() -> None:
    """Nobody streams, so nobody can be stalled."""
    assert compose([4_000], n_batch=512, prefill_tokens_max=64, turn=7) == [Slice(0, 512)]


def test_compose_shares_between_prompts_so_that_a_short_one_is_not_stuck_behind_a_long_one() -> None:
    """The short prompt is read wholly in the first step, the long one takes the rest."""
    slices = compose([10_000, 40], n_batch=512, prefill_tokens_max=64, turn=0)
    assert sorted(slices) == [Slice(0, 472), Slice(1, 40)]


def test_compose_takes_turns_where_not_everybody_has_room() -> None:
    """Eight who stream through batches of three: after eight steps each has had the same."""
    counts = [0] * 8
    for turn in range(8):
        for piece in compose([1] * 8, n_batch=3, prefill_tokens_max=1, turn=turn):
            counts[piece.place] += piece.length
    assert counts == [3] * 8


@given(PENDING, st.integers(1, 600), st.integers(1, 600), st.integers(0, 10**6))
def test_compose_never_exceeds_what_there_is(pending: list[int], n_batch: int, prefill: int, turn: int) -> None:
    """Slices fit the batch, are parts of what is pending, name nobody twice, and something is done if anything is."""
    slices = compose(pending, n_batch=n_batch, prefill_tokens_max=prefill, turn=turn)
    places = [piece.place for piece in slices]
    assert sum(piece.length for piece in slices) <= n_batch
    assert len(set(places)) == len(places)
    assert all(1 <= piece.length <= pending[piece.place] for piece in slices)
    assert bool(slices) == any(pending)


@given(PENDING, st.integers(1, 600), st.integers(1, 600), st.integers(0, 10**6))
def test_compose_stalls_nobody_who_streams(pending: list[int], n_batch: int, prefill: int, turn: int) -> None:
    """Everybody who decodes is in the step, as far as a batch holds them, and prompts beside them keep their bound."""
    slices = compose(pending, n_batch=n_batch, prefill_tokens_max=prefill, turn=turn)
    decoding = pending.count(1)
    served = [piece for piece in slices if pending[piece.place] == 1]
    assert len(served) == min(decoding, n_batch)
    assert slices[: len(served)] == served
    if decoding:
        assert sum(piece.length for piece in slices[len(served) :]) <= prefill


@given(st.lists(st.integers(2, 300), min_size=1, max_size=20), st.integers(1, 20), st.integers(1, 50))
def test_compose_lets_every_prompt_end(prompts: list[int], n_batch: int, prefill: int) -> None:
    """Beside somebody who streams for ever, every prompt is read after a bounded number of steps."""
    pending = [1, *prompts]
    steps = 0
    while any(pending[1:]):
        for piece in compose(pending, n_batch=n_batch + 1, prefill_tokens_max=prefill, turn=steps):
            if piece.place:
                pending[piece.place] -= piece.length
        steps += 1
        # A prompt with one token left counts as decoding; then at least two tokens move in a step of two.
        assert steps <= 2 * sum(prompts) + len(prompts)


@given(st.lists(st.integers(0, 1_000), max_size=20), st.integers(0, 2_000))
def test_divide_is_fair_and_wastes_nothing(wants: list[int], room: int) -> None:
    """Nobody gets more than it wants, all room is used while somebody wants, and unequal shares are full or one off."""
    shares = divide(wants, room)
    assert sum(shares) == min(room, sum(wants))
    assert all(share <= want for share, want in zip(shares, wants, strict=True))
    open_shares = [share for share, want in zip(shares, wants, strict=True) if share < want]
    if open_shares:
        assert max(shares) - min(open_shares) <= 1


def test_prefill_pace_learns_what_fits_in_a_step() -> None:
    """A machine that reads 1 token a millisecond gets 64 tokens in 80 ms steps, a slow one the granule."""
    pace = PrefillPace(step_seconds=0.08, granule=32, tokens_max=512)
    assert pace.tokens() == 32
    for _ in range(20):
        pace.observe(64, 0.064)
    assert pace.tokens() == 64
    for _ in range(50):
        pace.observe(32, 32.0)
    assert pace.tokens() == 32
    for _ in range(50):
        pace.observe(512, 0.001)
    assert pace.tokens() == 512


def test_prefill_pace_learns_nothing_from_decoding() -> None:
    """A step of a few tokens costs mostly what does not depend on their number."""
    pace = PrefillPace(step_seconds=0.08, granule=32, tokens_max=512)
    pace.observe(512, 0.01)
    before = pace.tokens()
    pace.observe(4, 1.0)
    assert pace.tokens() == before


def test_prefill_pace_makes_steps_whole_multiples_with_those_that_decode() -> None:
    """64 tokens in all beside 3 that decode; beside 40 there is too little left of 64, so it is 128."""
    pace = PrefillPace(step_seconds=0.08, granule=64, tokens_max=512)
    assert pace.tokens(3) + 3 == 64
    assert pace.tokens(40) + 40 == 128
    assert pace.tokens(64) + 64 == 128


def test_turns_change_after_so_many_steps_and_everybody_has_one() -> None:
    """Three groups, two steps each, round and round."""
    turns: Turns[str] = Turns(steps=2)
    assert [turns.next(["a", "b", "a", "c"]) for _ in range(8)] == [*"aabbccaa"]


def test_turn_of_a_group_that_has_left_goes_to_the_next_at_once() -> None:
    """And who comes is served after those that were there."""
    turns: Turns[str] = Turns(steps=4)
    assert turns.next(["a", "b"]) == "a"
    assert [turns.next(["b"]), turns.next(["b", "c"])] == ["b", "b"]
    assert [turns.next(["b", "c"]) for _ in range(4)] == [*"bbcc"]


@given(st.lists(st.lists(st.integers(0, 4), min_size=1), min_size=1), st.integers(1, 5))
def test_turns_starve_nobody(steps: list[list[int]], length: int) -> None:
    """Who is there all the time is served within one turn of each of the others."""
    turns: Turns[int] = Turns(steps=length)
    waited = 0
    for groups in steps:
        served = turns.next([9, *groups])
        assert served in {9, *groups}
        waited = 0 if served == 9 else waited + 1
        assert waited <= 5 * length
