"""The restart policy: backoff, budget, forgiveness."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from llmvisor.supervision.scheduling.restart import RestartPolicy


def policy(*, restarts_max: int = 5, random: Callable[[], float] = lambda: 1.0) -> RestartPolicy:
    return RestartPolicy(
        restarts_max=restarts_max, window_seconds=60, backoff_seconds=(0.1, 10), stable_seconds=60, random=random
    )


def test_backoff_doubles_up_to_its_ceiling() -> None:
    """Each crash in a row doubles the ceiling of the wait, up to the longest."""
    restarts = policy(restarts_max=100)
    waits = [restarts.crashed(float(n), served_seconds=0) for n in range(9)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


def test_backoff_has_full_jitter() -> None:
    """The wait is anywhere between nothing and the ceiling, so that many never start in step."""
    assert policy(random=lambda: 0.0).crashed(0, served_seconds=0) == 0
    assert policy(random=lambda: 0.5).crashed(0, served_seconds=0) == 0.05


def test_budget_is_spent_by_one_crash_more_than_it_allows() -> None:
    """Five restarts within the window are allowed; the sixth crash ends it."""
    restarts = policy()
    waits = [restarts.crashed(float(n), served_seconds=0) for n in range(6)]
    assert None not in waits[:5]
    assert waits[5] is None


def test_budget_of_zero_allows_no_restart() -> None:
    """`restart.max: 0` gives up at the first crash."""
    assert policy(restarts_max=0).crashed(0, served_seconds=0) is None


def test_crashes_older_than_the_window_are_forgotten() -> None:
    """A crash each 13 seconds never has more than five of them within a minute."""
    restarts = policy()
    assert all(restarts.crashed(n * 13.0, served_seconds=0) is not None for n in range(50))


def test_serving_for_a_stable_time_forgives_and_starts_the_backoff_anew() -> None:
    """A worker that served for a minute gets the first, shortest wait again."""
    restarts = policy()
    for n in range(3):
        restarts.crashed(float(n), served_seconds=0)
    assert restarts.crashed(50.0, served_seconds=60) == 0.0
    assert restarts.crashed(50.5, served_seconds=1) == 0.2
    assert restarts.crashed(51.0, served_seconds=0) is not None


def test_reset_forgets_everything() -> None:
    """After a reset the whole budget is there."""
    restarts = policy(restarts_max=1)
    assert [restarts.crashed(0, served_seconds=0), restarts.crashed(0, served_seconds=0)] == [0.1, None]
    restarts.reset()
    assert restarts.crashed(0, served_seconds=0) == 0.1


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(0, 0.999), st.integers(0, 10))
def test_a_wait_is_never_longer_than_the_longest(gaps: list[float], jitter: float, restarts_max: int) -> None:
    """Whatever the times of the crashes, a wait lies between 0 and 10 s, and no window has more than the budget."""
    restarts, now, allowed = policy(restarts_max=restarts_max, random=lambda: jitter), 0.0, list[float]()
    for gap in gaps:
        now += gap
        wait = restarts.crashed(now, served_seconds=0)
        if wait is not None:
            assert 0 <= wait <= 10
            allowed.append(now)
    for start in allowed:
        assert sum(start <= at <= start + 60 for at in allowed) <= max(restarts_max, 0)


def test_first_crash_of_a_worker_that_served_waits_for_nothing() -> None:
    """Whoever was inside waits for the next worker; one that crashes again at once is not tried again at once."""
    restarts = policy()
    assert restarts.crashed(0, served_seconds=5) == 0.0
    assert restarts.crashed(1, served_seconds=0.5) == 0.2
    assert policy().crashed(0, served_seconds=0) == 0.1


def test_crashes_of_a_forgiven_request_do_not_count() -> None:
    """The budget is whole again, but for crashes that it was not inside at."""
    restarts = policy(restarts_max=2)
    both, one = frozenset({1, 2}), frozenset({2})
    assert [restarts.crashed(n, served_seconds=1, inside=both) is None for n in range(3)] == [False, False, True]
    assert restarts.inside_all() == both
    restarts.forgive(frozenset({1}))
    assert restarts.inside_all() == frozenset()
    assert [restarts.crashed(n, served_seconds=1, inside=one) is None for n in range(3)] == [False, False, True]


def test_single_crash_says_nothing_of_who_was_inside() -> None:
    """A budget of none is spent by the first crash, and nobody is to blame for that."""
    restarts = policy(restarts_max=0)
    assert restarts.crashed(0, served_seconds=1, inside=frozenset({1})) is None
    assert restarts.inside_all() == frozenset()


def test_excused_crash_is_no_reason_to_give_up() -> None:
    """It counts, but another start follows."""
    restarts = policy(restarts_max=1)
    assert None not in [restarts.crashed(n, served_seconds=1, excused=True) for n in range(5)]
    assert restarts.crashed(5, served_seconds=1) is None
