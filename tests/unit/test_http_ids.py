"""Ids of answers and requests: unique, and in the order of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from llmvisor.http.ids import Ids


class SetClock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 0.0


def test_ids_sort_by_time_and_never_repeat_within_a_millisecond() -> None:
    """Many at one moment, then later ones: each sorts after the one before."""
    clock = SetClock()
    ids = Ids(clock, lambda count: b"\xff" * count)
    made: list[str] = []
    for step in range(5):
        made += [ids.new("x-") for _ in range(100)]
        clock.at += timedelta(milliseconds=step)
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(len(one) == 34 and one.startswith("x-") for one in made)


def test_ids_go_on_upwards_when_the_wall_clock_steps_back() -> None:
    """A clock that is set back makes neither order nor uniqueness fail."""
    clock = SetClock()
    ids = Ids(clock, lambda count: b"\x07" * count)
    before = ids.new("")
    clock.at -= timedelta(days=1)
    after = ids.new("")
    clock.at += timedelta(days=2)
    assert before < after < ids.new("")


def test_ids_of_two_instances_differ_by_their_randomness() -> None:
    """Two daemons at the same millisecond make different ids."""
    clock = SetClock()
    assert Ids(clock, lambda count: b"\x01" * count).new("") != Ids(clock, lambda count: b"\x02" * count).new("")
