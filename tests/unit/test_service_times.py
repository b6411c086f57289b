"""What requests take is measured, and whoever finds the queue full is told when it is worth coming back."""

from __future__ import annotations

import pytest
from tests.support.schedulers import ready, scheduler, without_changes

from llmvisor import limits
from llmvisor.supervision.scheduling.effects import Expire, Grant, Refuse, Ticket
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.scheduling.service_times import ServiceTimes


def measured(*seconds: float) -> ServiceTimes:
    times, now = ServiceTimes(), 0.0
    for id, held in enumerate(seconds):
        times.began(Ticket(id, 1, now), now)
        now += held
        times.ended(id, now)
    return times


def test_nothing_is_known_before_something_has_ended() -> None:
    times = ServiceTimes()
    assert times.wait_seconds(5, 1) is None
    assert times.come_back_seconds(0, queued=5, slots=1, loading_since=None) == limits.retry_after_seconds


def test_wait_is_what_is_ahead_by_what_it_takes() -> None:
    """Ten requests of four seconds in two places take twenty."""
    assert measured(*[4.0] * 30).wait_seconds(10, 2) == pytest.approx(20)


def test_each_that_is_refused_is_promised_a_place_of_its_own() -> None:
    """They come back one service apart instead of all at once; who comes later is promised less."""
    times = measured(*[4.0] * 30)
    told = [times.come_back_seconds(1000, queued=8, slots=2, loading_since=None) for _ in range(4)]
    assert told == pytest.approx([2, 4, 6, 8])
    assert times.come_back_seconds(1006, queued=8, slots=2, loading_since=None) == pytest.approx(4)


def test_nobody_is_told_more_than_it_takes_to_empty_the_queue_twice() -> None:
    times = measured(*[4.0] * 30)
    told = [times.come_back_seconds(0, queued=8, slots=2, loading_since=None) for _ in range(1000)]
    assert max(told) == pytest.approx(40)
    times.mean_seconds = 1e6
    assert times.come_back_seconds(0, queued=8, slots=2, loading_since=None) == limits.retry_after_seconds_max


def test_what_is_left_of_a_load_counts() -> None:
    """The last load took twenty seconds, this one has been going on for five."""
    times = measured(*[1.0] * 10)
    times.loaded(20.0)
    assert times.come_back_seconds(105, queued=3, slots=1, loading_since=100.0) == pytest.approx(16)


def test_turns_are_measured_against_the_others() -> None:
    """A request that holds its place four times as long as the mean takes three turns more; the bound holds."""
    times = measured(*[1.0] * 50)
    times.began(Ticket(100, 2, 0), 0)
    ticket, turns = times.ended(100, 4.0) or (None, 0.0)
    assert ticket is not None
    assert turns == pytest.approx(6)
    times.began(Ticket(101, 1, 0), 0)
    _, turns = times.ended(101, 1e9) or (None, 0.0)
    assert turns == limits.turn_share_max - 1


def test_lost_requests_are_no_measure() -> None:
    times = measured(1.0)
    times.began(Ticket(7, 1, 0), 0)
    times.forget_running()
    assert (times.ended(7, 100), times.mean_seconds) == (None, 1.0)


# -------------------------------------------------------------------------------------------------- in the scheduler


def full(one: Scheduler, now: float) -> Refuse:
    """The refusal of a request that finds the queue full."""
    for id in range(1000, 1100):
        effects = one.submit(Ticket(id, 1, now))
        found = [effect for effect in effects if isinstance(effect, Refuse)]
        if found:
            return found[0]
    raise AssertionError("the queue is never full")


def test_full_queue_tells_when_to_come_back_from_what_was_measured() -> None:
    """1. Two places; requests take six seconds. 2. The queue is full. Result: three seconds, half of six."""
    one = ready(slots=2, queue_limit=3)
    now = 10.0
    for id in range(1, 20):
        one.submit(Ticket(id, 1, now))
        now += 6
        one.ended(id, now)
    refusal = full(one, now)
    assert (refusal.kind, refusal.retry_after_seconds) == ("queue_full", pytest.approx(3))


# -------------------------------------------------------------------------------------------------- deadlines


def test_waiting_request_ends_at_its_deadline() -> None:
    """The next wake is then, and the request is refused with `timeout`, not before."""
    one = ready(slots=1)
    one.submit(Ticket(1, 1, 2.0))
    one.submit(Ticket(2, 1, 2.0, deadline=7.0))
    assert one.next_wake() == 7.0
    assert one.wake(6.9) == []
    refused = one.wake(7.0)
    assert [(each.id, each.kind) for each in refused if isinstance(each, Refuse)] == [(2, "timeout")]
    assert without_changes(one.ended(1, 8.0)) == []


def test_running_request_expires_and_keeps_its_place_until_the_worker_lets_go() -> None:
    one = ready(slots=1)
    assert one.submit(Ticket(1, 1, 2.0, deadline=7.0)) == [Grant(1)]
    one.submit(Ticket(2, 1, 2.0))
    assert one.next_wake() == 7.0
    assert one.wake(7.0) == [Expire(1)]
    assert one.wake(8.0) == []
    assert one.ended(1, 9.0) == [Grant(2)]


def test_request_whose_time_is_over_is_not_begun() -> None:
    refused = ready(slots=1).submit(Ticket(1, 1, 5.0, deadline=5.0))
    assert [(each.id, each.kind) for each in refused if isinstance(each, Refuse)] == [(1, "timeout")]


def test_deadline_holds_while_the_model_loads() -> None:
    """It is shorter than the load's own."""
    one = scheduler(load_timeout_seconds=300)
    one.submit(Ticket(1, 1, 0.0, deadline=3.0))
    assert one.next_wake() == 3.0
    assert [each.kind for each in one.wake(3.0) if isinstance(each, Refuse)] == ["timeout"]


def test_request_that_ended_in_time_leaves_no_deadline() -> None:
    one = ready(slots=1, idle_timeout_seconds=0)
    one.submit(Ticket(1, 1, 2.0, deadline=7.0))
    one.ended(1, 3.0)
    assert one.next_wake() is None


def test_place_among_those_that_wait() -> None:
    one = ready(slots=1)
    for id in range(1, 5):
        one.submit(Ticket(id, 1, 2.0))
    assert [one.place(id) for id in range(1, 5)] == [None, (1, 3), (2, 3), (3, 3)]


def test_clients_take_turns_for_places() -> None:
    """1. One client fills place and queue. 2. Another asks. Result: it has the second place that becomes free."""
    one = ready(slots=1)
    for id in range(1, 6):
        one.submit(Ticket(id, 1, 2.0, client="greedy"))
    one.submit(Ticket(9, 1, 3.0, client="polite"))
    assert one.ended(1, 4.0) == [Grant(2)]
    assert one.ended(2, 5.0) == [Grant(9)]
