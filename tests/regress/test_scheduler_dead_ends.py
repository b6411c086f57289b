"""States that the scheduler did not find out of, or did not leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.schedulers import ready, scheduler, ticket, without_changes

from llmvisor.supervision.scheduling.effects import Grant, Refuse, StartWorker, StopWorker
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.scheduling.state import State


def test_preload_without_room_is_not_tried_over_and_over() -> None:
    """A preloaded model that did not fit was started again at once, and denied again, without end."""
    one = scheduler()
    one.load_wanted(0)
    assert without_changes(one.denied("too big", 1)) == []
    assert one.state is State.STOPPED


def test_crashed_model_without_room_is_not_tried_over_and_over() -> None:
    """The same after a crash, whose memory somebody else has taken meanwhile."""
    one = ready()
    one.exited("boom", 10)
    assert without_changes(one.wake(11)) == [StartWorker()]
    assert without_changes(one.denied("too big", 12)) == []
    assert without_changes(one.submit(ticket(1, at=13))) == [StartWorker()]


def test_worker_given_up_while_the_daemon_ends_does_not_hold_up_the_end() -> None:
    """1. A request runs. 2. The daemon is to end. 3. The worker dies for good. Result: closed, not unavailable; the
    daemon had waited for its whole drain timeout."""
    one = ready()
    one.submit(ticket(1))
    one.shutdown(2)
    one.exited("exited with code 78", 3, permanent=True)
    assert one.state is State.CLOSED


def test_keep_alive_ends_with_its_worker() -> None:
    """A request's keep_alive of 0 unloaded the model after every later request, too."""
    one = ready(idle_timeout_seconds=300)
    one.submit(ticket(1, at=10, keep_alive=0))
    one.ended(1, 20)
    one.wake(20)
    one.exited("exited with code 0", 21)
    one.submit(ticket(2, at=30))
    one.loaded(4, 31)
    one.ended(2, 40)
    assert one.next_wake() == 340


def test_keep_alive_of_a_request_that_never_ran_counts_for_nothing() -> None:
    """One that left the queue had changed how long the model stays."""
    one = ready(slots=1, idle_timeout_seconds=300)
    one.submit(ticket(1, at=10))
    one.submit(ticket(2, at=11, keep_alive=0))
    one.withdrawn(2, 12)
    one.ended(1, 20)
    assert one.next_wake() == 320


def test_queue_limit_of_zero_lets_a_model_load() -> None:
    """Nobody may wait for a slot, but those that will have one wait for the load: the first request was refused."""
    one = scheduler(queue_limit=0, parallel=2)
    assert without_changes(one.submit(ticket(1))) == [StartWorker()]
    assert one.submit(ticket(2)) == []
    (refusal,) = one.submit(ticket(3))
    assert isinstance(refusal, Refuse)
    assert refusal.kind == "queue_full"
    assert without_changes(one.loaded(2, 5)) == [Grant(1), Grant(2)]


def test_model_that_yields_and_is_needed_no_more_serves_what_waits() -> None:
    """Its stream may run for long: those who came meanwhile do not wait for that, nor does it load again afterwards."""
    one = ready()
    one.submit(ticket(1))
    one.unload_wanted(2, yields=True)
    one.submit(ticket(2, at=3))
    one.load_wanted(3)
    assert without_changes(one.stay_wanted(4)) == [Grant(2)]
    assert one.state is State.READY
    one.ended(1, 5)
    one.ended(2, 5)
    one.unload_wanted(6)
    assert without_changes(one.exited("exited with code 0", 7)) == []
    assert one.state is State.STOPPED


@pytest.mark.parametrize("then", [Scheduler.unload_wanted, Scheduler.shutdown])
def test_model_that_somebody_else_wants_gone_does_not_stay(then: Callable[[Scheduler, float], object]) -> None:
    """A person, a reload or the daemon's end wins over what it made room for."""
    one = ready()
    one.submit(ticket(1))
    one.unload_wanted(2, yields=True)
    then(one, 3)
    assert one.stay_wanted(4) == []
    assert one.state is State.DRAINING
    assert StopWorker("close", "unloaded") in one.ended(1, 5)
