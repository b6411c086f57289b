"""Computed beginnings of prompts: the longest is found, and what is kept stays within its bounds."""

from __future__ import annotations

from llmvisor_runtimes.mlx.prefixes import PrefixCache


def make_cache(*, sequences_max: int = 8, bytes_max: int = 1000) -> PrefixCache[str]:
    return PrefixCache(sequences_max=sequences_max, bytes_max=bytes_max)


def test_match_is_the_longest_common_beginning() -> None:
    """Of two that begin alike the one that goes further is taken, and no more of it than may be reused."""
    cache = make_cache()
    cache.put([1, 2, 3, 9], "short", 10, can_cut=True)
    cache.put([1, 2, 3, 4, 5, 9], "long", 10, can_cut=True)
    match = cache.match([1, 2, 3, 4, 5, 6, 7], 6)
    assert match is not None
    assert (match.kept.state, match.length) == ("long", 5)
    cut = cache.match([1, 2, 3, 4, 5, 6, 7], 2)
    assert cut is not None
    assert cut.length == 2
    assert cache.match([7, 1], 1) is None


def test_state_that_cannot_be_cut_serves_only_what_goes_on_from_its_end() -> None:
    """A recurrent state is of all its tokens or of none."""
    cache = make_cache()
    cache.put([1, 2, 3], "state", 10, can_cut=False)
    assert cache.match([1, 2, 4], 2) is None
    match = cache.match([1, 2, 3, 4], 3)
    assert match is not None
    assert match.length == 3
    cache.put([1, 2, 3, 4], "longer", 10, can_cut=False)
    assert len(cache) == 2, "the shorter one is not in the longer one"


def test_longer_state_takes_the_place_of_what_it_begins_with() -> None:
    """The bytes of a conversation are held once, not once for each turn."""
    cache = make_cache()
    cache.put([1, 2], "first turn", 10, can_cut=True)
    cache.put([1, 2, 3], "second turn", 15, can_cut=True)
    assert (len(cache), cache.size_bytes) == (1, 15)


def test_oldest_used_goes_first() -> None:
    """Being found counts as being used."""
    cache = make_cache(sequences_max=2)
    cache.put([1, 1], "a", 10, can_cut=True)
    cache.put([2, 2], "b", 10, can_cut=True)
    assert cache.match([1, 1, 1], 2) is not None
    cache.put([3, 3], "c", 10, can_cut=True)
    assert cache.match([2, 2, 2], 2) is None
    assert cache.match([1, 1, 1], 2) is not None
    assert cache.size_bytes == 20


def test_bytes_are_bounded() -> None:
    """What is larger than the bound is not kept at all; what comes over it drives the oldest out."""
    cache = make_cache(bytes_max=100)
    cache.put([1], "huge", 101, can_cut=True)
    assert len(cache) == 0
    for token in range(1, 6):
        cache.put([token], str(token), 40, can_cut=True)
    assert (len(cache), cache.size_bytes) == (2, 80)
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
