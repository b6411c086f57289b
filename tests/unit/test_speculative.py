"""Guessing tokens ahead: what is proposed, how much of it, and that it never costs much where guesses are wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmvisor_runtimes import limits
from llmvisor_runtimes.llamacpp.speculative import DraftPace, LookupDrafter
from llmvisor_runtimes.prefill import common_prefix

TOKENS = st.lists(st.integers(0, 3), max_size=60)
SHORTEST = min(limits.lookup_ngram_tokens)


def test_lookup_proposes_what_followed_the_same_tokens_before() -> None:
    """The text ends like an earlier place: what came there comes again."""
    assert LookupDrafter().propose([1, 2, 3, 4, 5, 6, 9, 2, 3, 4], 3) == [5, 6, 9]


def test_lookup_takes_the_latest_of_several_places() -> None:
    """A text that changes its mind goes on as it did last."""
    assert LookupDrafter().propose([1, 2, 3, 7, 0, 1, 2, 3, 8, 0, 1, 2, 3], 1) == [8]


def test_lookup_prefers_the_longest_likeness() -> None:
    """A place that agrees for ten tokens counts more than a later one that agrees for eight."""
    text = list(range(10, 20))
    assert LookupDrafter().propose([*text, 50, 9, *text[2:], 60, *text], 1) == [50]


def test_lookup_has_nothing_to_say_about_a_text_that_never_repeats_itself() -> None:
    """Nor about an empty one, nor where nothing is wanted."""
    assert LookupDrafter().propose(list(range(100)), 8) == []
    assert LookupDrafter().propose([], 8) == []
    assert LookupDrafter().propose([1, 2, 1, 2], 0) == []


def test_lookup_goes_round_where_the_text_repeats_itself_up_to_its_end() -> None:
    """A period of three is guessed on for as long as it is asked."""
    assert LookupDrafter().propose([5, 6, 7, 5, 6, 7, 5, 6], 7) == [7, 5, 6, 7, 5, 6, 7]


def test_lookup_is_not_misled_by_bytes_of_neighbouring_tokens() -> None:
    """Tokens are compared whole: 256 and 1 have bytes in common when shifted."""
    assert LookupDrafter().propose([256, 256, 256, 256, 9, 1, 1, 1], 2) == []


@given(TOKENS, st.integers(0, 20))
def test_lookup_always_proposes_something_that_stood_there(tokens: list[int], count: int) -> None:
    """The first guess followed the last tokens before, and there are no more than asked for."""
    draft = LookupDrafter().propose(tokens, count)
    assert len(draft) <= count
    if draft:
        ending = [*tokens[-SHORTEST:], draft[0]]
        places = range(len(tokens) - SHORTEST)
        assert any(tokens[place : place + SHORTEST + 1] == ending for place in places)


@given(TOKENS.filter(lambda tokens: len(tokens) > 8), st.data())
def test_lookup_guesses_well_however_the_text_grew(tokens: list[int], data: st.DataObject) -> None:
    """Asked on the way or not, it finds a place that is as like the end as any."""

    def likeness(draft: list[int]) -> int:
        places = [place for place in range(1, len(tokens)) if tokens[place] == draft[0]]
        return max((common_prefix(tokens[place - 1 :: -1], tokens[::-1]) for place in places), default=0)

    drafter = LookupDrafter()
    for stop in sorted(data.draw(st.lists(st.integers(0, len(tokens))))):
        drafter.propose(tokens[:stop], 4)
    draft, fresh = drafter.propose(tokens, 4), LookupDrafter().propose(tokens, 4)
    assert bool(draft) == bool(fresh)
    if draft:
        assert min(8, likeness(draft)) >= min(8, likeness(fresh))


def test_lookup_goes_on_copying_though_the_text_has_places_like_it() -> None:
    """A list of records that are nearly the same is copied record by record: it does not jump to the latest."""
    records = [[100 + number, *range(12)] for number in range(8)]
    source = [token for record in records for token in record]
    written = [*source, 999]
    drafter = LookupDrafter()
    wrong = 0
    for place in range(6, len(source) - 1):
        draft = drafter.propose([*written, *source[: place + 1]], 1)
        wrong += draft != [source[place + 1]]
    assert wrong <= 2


def test_lookup_trusts_a_short_likeness_for_a_few_tokens_only() -> None:
    """Three tokens may agree by accident."""
    text = [1, 2, 3, *range(10, 40), 1, 2, 3]
    assert len(LookupDrafter().propose(text, 32)) == limits.lookup_trust * 3
    text = [*range(10, 50), 1, *range(10, 40)]
    assert len(LookupDrafter().propose(text, 32)) == 32


def test_right_guesses_grow_to_the_bound() -> None:
    """Twice as many each time, and never more than the bound."""
    pace = DraftPace(tokens_max=16)
    seen: list[int] = []
    for _ in range(6):
        seen.append(pace.tokens)
        pace.observe(pace.tokens, pace.tokens)
    assert seen == [4, 8, 16, 16, 16, 16]


def test_short_guesses_that_were_right_do_not_shrink_the_pace() -> None:
    """Somebody else had the room: it says nothing about the text."""
    pace = DraftPace(tokens_max=16)
    pace.observe(4, 4)
    pace.observe(1, 1)
    assert pace.tokens == 8


def test_wrong_guesses_rest_longer_each_time_and_a_right_one_ends_that() -> None:
    """Four tokens, eight, sixteen …; then it is as it was."""
    pace = DraftPace()
    rests: list[int] = []
    for _ in range(8):
        pace.observe(2, 0)
        rests.append(0)
        while pace.resting:
            pace.observe(0, 0)
            rests[-1] += 1
    assert rests == [4, 8, 16, 32, 64, 128, 128, 128]
    pace.observe(2, 2)
    assert not pace.resting
    pace.observe(2, 0)
    for _ in range(4):
        assert pace.resting
        pace.observe(0, 0)
    assert not pace.resting


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16))))
def test_pace_stays_within_its_bounds(steps: list[tuple[int, int]]) -> None:
    """Whatever happens."""
    pace = DraftPace()
    for drafted, accepted in steps:
        pace.observe(drafted, min(drafted, accepted))
        assert 1 <= pace.tokens <= limits.draft_tokens_max


def test_resting_lookup_still_takes_a_long_likeness() -> None:
    """Eight equal tokens are no accident; three may be."""
    drafter = LookupDrafter()
    drafter.observe(2, 0)
    copied = list(range(20, 28))
    assert drafter.propose([1, 2, 3, *copied, 5, 1, 2, 3], 1) == []
    assert drafter.propose([1, 2, 3, *copied, 5, 1, 2, 3, *copied], 1) == [5]
