"""Text out of token bytes: whole characters, stop strings, and nothing that leaks.

Goal: however the bytes are cut, the joined text is what decoding and searching all of it at once would give. The oracle
is `bytes.decode` and `re.search`; Hypothesis makes the bytes, the stop strings and the cuts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmvisor_runtimes.text import TextAssembler


def expected(data: bytes, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that stop string."""
    text = data.decode("utf-8", "replace")
    pattern = "|".join(re.escape(word) for word in sorted(stop, key=len) if word)
    match = re.search(pattern, text) if pattern else None
    return (text[: match.start()], match.group()) if match else (text, None)


def assembled(data: bytes, cuts: Sequence[int], stop: Sequence[str]) -> tuple[list[str], TextAssembler]:
    """What each push and the flush gave for `data` cut at `cuts`."""
    assembler = TextAssembler(stop)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    given_text = [assembler.push(data[start:end]) for start, end in pairwise(places)]
    return [*given_text, assembler.flush()], assembler


any_bytes = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(str.encode),
    st.lists(
        st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xed\xa0\x80", b"\xf0\x9f", b"a", b"\xff", b"\xc3\xa9"])
    ).map(b"".join),
)
few_letters = st.text(alphabet="abc", max_size=30)
cuts = st.lists(st.integers(0, 40), max_size=12)


@given(any_bytes, cuts)
@example(b"\xf0\x9f\x98\x80", [1, 2, 3])
@example(b"\xed\xa0\x80", [1, 2])
@example(b"\xf0\x80\x80\x41", [1, 2, 3])
def test_text_is_the_same_however_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    """Without stop strings the joined text is the decoded text, each invalid sequence replaced exactly once."""
    pieces, assembler = assembled(data, cuts, [])
    assert "".join(pieces) == data.decode("utf-8", "replace")
    assert not assembler.stopped


@given(few_letters, cuts, st.lists(st.text(alphabet="abc", max_size=6), max_size=4))
@example("abcx", [1, 2, 3], ["abcd", "bc"])
@example("abcab", [], ["abcabd", "cab"])
@example("aabaab", [2], ["aabaaa", "baa"])
def test_text_ends_before_the_stop_string_that_a_search_of_the_whole_text_finds(
    text: str, cuts: list[int], stop: list[str]
) -> None:
    """Overlapping and nested stop strings, cut anywhere, give the text and the match of one search over everything."""
    before, match = expected(text.encode(), stop)
    pieces, assembler = assembled(text.encode(), cuts, stop)
    assert "".join(pieces) == before
    assert assembler.matched == match
    assert assembler.stopped == (match is not None)


@given(
    any_bytes,
    cuts,
    st.lists(st.sampled_from(["€", "\ufffd", "é", "a\ufffd", "\U0001f600", "\ufffd\ufffd"]), max_size=3),
)
def test_text_finds_stop_strings_among_broken_bytes(data: bytes, cuts: list[int], stop: list[str]) -> None:
    """Stop strings of more than one byte, and replaced bytes, are found as in the whole text."""
    before, match = expected(data, stop)
    pieces, assembler = assembled(data, cuts, stop)
    assert "".join(pieces) == before
    assert assembler.matched == match


@given(few_letters, cuts, st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4))
def test_text_given_is_never_taken_back(text: str, cuts: list[int], stop: list[str]) -> None:
    """After each piece, what has been given is a beginning of the final text."""
    before, _ = expected(text.encode(), stop)
    pieces, _ = assembled(text.encode(), cuts, stop)
    for count in range(len(pieces)):
        assert before.startswith("".join(pieces[:count]))


def test_text_waits_for_the_rest_of_a_character() -> None:
    """A character that is cut is given with its last byte."""
    assembler = TextAssembler()
    assert [assembler.push(b"a\xe2"), assembler.push(b"\x82"), assembler.push(b"\xacb")] == ["a", "", "€b"]


def test_text_marks_a_character_that_never_ends() -> None:
    """The end of a generation inside a character gives one U+FFFD, once."""
    assembler = TextAssembler()
    assert assembler.push(b"a\xf0\x9f") == "a"
    assert [assembler.flush(), assembler.flush()] == ["\ufffd", ""]


def test_text_holds_back_only_what_may_be_a_stop_string() -> None:
    """Text is sent at once unless a stop string may have begun, and is let go when it has not."""
    assembler = TextAssembler(["</s>", "User:"])
    given_text = [assembler.push(piece) for piece in (b"Hello <", b"/", b"b> Us", b"age")]
    assert given_text == ["Hello ", "", "</b> ", "Usage"]


def test_text_gives_nothing_after_a_stop_string() -> None:
    """What comes after a stop string, in its own piece or a later one, is never given."""
    assembler = TextAssembler(["STOP"])
    assert assembler.push(b"one STOP two") == "one "
    assert assembler.stopped
    assert [assembler.push(b" three"), assembler.flush()] == ["", ""]
    assert assembler.matched == "STOP"


def test_text_gives_what_was_held_back_at_the_end() -> None:
    """A beginning of a stop string at the end of a generation is text."""
    assembler = TextAssembler(["\n\nUser:"])
    assert assembler.push(b"bye\n\nUse") == "bye"
    assert assembler.flush() == "\n\nUse"
    assert not assembler.stopped


def test_text_keeps_stopping_when_a_longer_stop_string_is_not_completed() -> None:
    """A stop string inside the beginning of another one stops the text when the generation ends there."""
    assembler = TextAssembler(["abcd", "bc"])
    assert assembler.push(b"xabc") == "x"
    assert not assembler.stopped
    assert assembler.flush() == "a"
    assert assembler.matched == "bc"


@pytest.mark.parametrize("stop", [[], [""], ["", ""]])
def test_text_ignores_empty_stop_strings(stop: list[str]) -> None:
    """An empty stop string, which every text contains, stops nothing."""
    assembler = TextAssembler(stop)
    assert assembler.push(b"text") == "text"
    assert not assembler.stopped


def test_text_stays_linear_with_hostile_stop_strings() -> None:
    """Sixteen long stop strings that nearly match cost time in proportion to the text only."""
    stop = ["a" * (1000 + index) + "b" for index in range(16)]
    assembler = TextAssembler(stop)
    started = time.perf_counter()
    given_text = "".join(assembler.push(b"a" * 50) for _ in range(200)) + assembler.flush()
    assert time.perf_counter() - started < 5.0
    assert given_text == "a" * 10_000
