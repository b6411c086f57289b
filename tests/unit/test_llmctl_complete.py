"""What completion offers, decided from the parser's tables without a daemon."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.command_table import COMMANDS
from llmctl.complete import Candidate, candidates, split_line

NAMES = [entry.name for _, members in COMMANDS for entry in members]
WORDS = st.sampled_from(
    [*NAMES, "--json", "--socket", "--state", "-c", "-", "--", "=", "--state=", "watch", "set", "x"]
)


def nothing(kind: str, current: str) -> Iterable[Candidate]:
    return []


def words(*typed: str) -> list[str]:
    return [candidate.word for candidate in candidates(typed, nothing).words]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmctl", [""]),
        ("llmctl ", [""]),
        ("llmctl st", ["st"]),
        ("llmctl run light 'two words", ["run", "light", "two words"]),
        ('llmctl run "a b" ', ["run", "a b", ""]),
        ("llmctl run 'it", ["run", "it"]),
        ("llmctl show a\\", ["show", "a\\"]),
    ],
)
def test_a_line_is_cut_as_a_shell_does(line: str, expected: list[str]) -> None:
    """The last word is what is being typed, whether its quote is closed or not."""
    assert split_line(line) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_command_offers_its_options(name: str) -> None:
    """With what each of them is."""
    found = candidates([name, "--"], nothing).words
    assert name == "config" or "--json" in [candidate.word for candidate in found]
    assert all(candidate.about for candidate in found)


def test_options_with_a_value_take_the_next_word() -> None:
    """Which is then no command, and what follows it is one again."""
    assert words("--socket", "status", "sta") == ["status"]
    assert words("models", "--state", "lo") == ["loading", "loaded"]
    assert words("models", "--state", "loaded", "roll") == ["rollback"]
    assert words("logs", "--level=", "") == []
    assert candidates(["--socket", ""], nothing).files
    assert candidates(["config", "check", ""], nothing).files


def test_live_words_are_asked_by_their_kind() -> None:
    """Models where a model stands, jobs where a job does; the text that is typed goes along."""
    asked: list[tuple[str, str]] = []

    def live(kind: str, current: str) -> Iterable[Candidate]:
        asked.append((kind, current))
        return [Candidate(f"{current}x"), Candidate("another"), Candidate(f"{current}; rm")]

    assert [candidate.word for candidate in candidates(["load", "li"], live).words] == ["lix"]
    candidates(["jobs", "watch", "job_01", "job_"], live)
    candidates(["config", "set", ""], live)
    candidates(["logs", "--model", "m"], live)
    candidates(["run", "light", "why"], live)
    assert asked == [("MODEL", "li"), ("ID", "job_"), ("KEY", ""), ("MODEL", "m"), ("PROMPT", "why")]


@given(st.lists(WORDS | st.text(max_size=5), max_size=6))
def test_nothing_that_is_typed_breaks_it(typed: list[str]) -> None:
    """Whatever stands there, each offer goes on from what was typed."""
    current = typed[-1] if typed else ""
    found = candidates(typed, nothing)
    assert all(candidate.word.startswith(current) for candidate in found.words)


@given(st.text(max_size=40))
def test_any_line_has_a_last_word(line: str) -> None:
    """Open quotes, backslashes, control characters."""
    assert len(split_line(line)) >= 1
