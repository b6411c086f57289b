"""Which bytes are there, which are missing, how long to wait, and what an answer means."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.fetch import answers, limits
from llmvisor.fetch.answers import Interrupted
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.pace import Throttle, backoff_seconds
from llmvisor.fetch.protocol import FetchProgress
from llmvisor.fetch.ranges import clipped, count, merged, next_missing
from llmvisor.fetch.tally import Tally

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def offsets(ranges: list[tuple[int, int]]) -> set[int]:
    return {offset for start, end in ranges for offset in range(start, end)}


@given(RANGES)
def test_merged_ranges_hold_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    """In order, apart, and none of them empty."""
    whole = merged(ranges)
    assert offsets(whole) == offsets(ranges)
    assert count(whole) == len(offsets(ranges))
    assert all(start < end for start, end in whole)
    assert all(before[1] < after[0] for before, after in pairwise(whole))


@given(RANGES, st.integers(0, 70))
def test_clipped_ranges_end_with_the_file(ranges: list[tuple[int, int]], size: int) -> None:
    """What a file that was cut cannot hold does not count."""
    assert offsets(clipped(ranges, size)) == {offset for offset in offsets(ranges) if offset < size}


@given(RANGES, st.none() | st.integers(0, 70), st.integers(1, 30))
def test_asking_for_what_is_missing_brings_every_byte_once(
    ranges: list[tuple[int, int]], size: int | None, bytes_max: int
) -> None:
    """Until none is missing; each piece is within the bound, and holds nothing that is there."""
    there = merged(ranges)
    while (piece := next_missing(there, size=size, bytes_max=bytes_max)) is not None:
        assert 0 < piece[1] - piece[0] <= bytes_max
        assert not offsets([piece]) & offsets(there)
        there = merged([*there, piece])
        if size is None and there == [(0, there[-1][1])] and there[-1][1] >= 100:
            return
    assert size is not None
    assert offsets([(0, size)]) <= offsets(there)


@given(st.integers(1, 100), st.floats(0, 1))
def test_backoff_is_random_below_a_bound_that_doubles(failures: int, chance: float) -> None:
    """From the first failure's bound up to the largest."""
    bound = min(limits.fetch_backoff_seconds * 2.0 ** (failures - 1), limits.fetch_backoff_seconds_max)
    assert backoff_seconds(failures, lambda: chance) == pytest.approx(chance * bound)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_throttle_lets_through_its_rate_and_no_more(sizes: list[int]) -> None:
    """However the bytes come: after each wait no more has passed than the rate allows."""
    throttle, now, passed = Throttle(1000), 5.0, 0
    for size in sizes:
        passed += size
        now += throttle.seconds_to_wait(size, now)
        assert passed <= 1000 * (now - 5.0) + 1e-6


def test_throttle_without_a_rate_never_waits() -> None:
    """0 is no bound."""
    assert Throttle(0).seconds_to_wait(10**12, 0.0) == 0


def test_content_range_says_what_an_answer_holds() -> None:
    """The end is exclusive here, and a size may be left out."""
    assert answers.content_range({"Content-Range": "bytes 0-0/1"}) == (0, 1, 1)
    assert answers.content_range({"Content-Range": "bytes 5-9/*"}) == (5, 10, None)


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes 5-4/9", "bytes 0-9/9", "bytes -1-2/3", "bytes 0-1/x", "items 0-1/2", "bytes 0-1/2, 3-4/5",
     "bytes ٠-١/٢", "bytes 0-" + "9" * 40 + "/*"],
)  # fmt: skip
def test_content_range_that_cannot_be_is_a_failure_that_may_pass(text: str) -> None:
    """It comes from a proxy most often."""
    with pytest.raises(Interrupted):
        answers.content_range({"Content-Range": text})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("120", 120.0), ("", None), ("soon", None), ("-1", None), ("1.5", None), ("²", None),
     ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0), ("Thu, 01 Jan 2020 00:00:00 GMT", 0.0),
     ("Thu, 01 Jan 2026 00:01:00", None), ("9" * 100, 999999999.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    """Whatever else it is says nothing."""
    assert answers.retry_after_seconds({"Retry-After": text}, NOW) == seconds


def test_every_status_without_a_file_has_a_meaning() -> None:
    """It may pass, or it is an error with a next step."""
    for status in range(300, 600):
        meaning = answers.refusal(status, {}, "m.gguf", NOW)
        if status >= 500 or status in {408, 409, 423, 425, 429}:
            assert isinstance(meaning, Interrupted)
        else:
            assert isinstance(meaning, FetchProblem)
            assert meaning.hint
            assert meaning.kind in {"forbidden", "not_found", "invalid"}


def test_tally_knows_the_total_once_every_size_is_known() -> None:
    """0 until then; what is begun again is subtracted."""
    seen: list[FetchProgress] = []
    tally = Tally(seen.append, {"a": 10, "b": None})
    tally.begin("a", "downloading")
    tally.there("a", 8)
    tally.there("a", 3)
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (3, 0)
    tally.know("b", 5)
    tally.end("a", 10)
    tally.begin("b", "verifying")
    assert seen[-1] == FetchProgress("verifying", 10, 15, "b", 1, 2)
