"""What the crash of a worker leads to: another start, the end of a request, or of the model."""

from __future__ import annotations

from llmvisor import limits
from llmvisor.supervision.scheduling.crashes import Crashes, Verdict
from llmvisor.supervision.scheduling.poison import Crash, PoisonRule
from llmvisor.supervision.scheduling.restart import RestartPolicy

FAULT = Crash("fault")


def crashes(restarts_max: int = 2) -> Crashes:
    policy = RestartPolicy(
        restarts_max=restarts_max, window_seconds=60, backoff_seconds=(1, 10), stable_seconds=60, random=lambda: 1.0
    )
    return Crashes(policy, PoisonRule(cleared_tokens=32))


def serving(one: Crashes, inside: list[int], crash: Crash = FAULT, *, at: float = 0) -> Verdict:
    return one.serving(at, inside, crash, served_seconds=1, permanent=False)


def test_blamed_crashes_spend_no_restart() -> None:
    """A hundred poison requests, each served on its own between others that end well, never spend a budget of two."""
    one = crashes()
    for request_id in range(100):
        assert serving(one, [request_id]) == Verdict(0.0)
        assert serving(one, [request_id]) == Verdict(0.0, frozenset({request_id}))
        one.served()


def test_crashes_of_an_idle_worker_spend_the_budget() -> None:
    """Nobody was inside, so nobody is to blame."""
    one = crashes()
    assert [serving(one, []).delay_seconds for _ in range(3)] == [0.0, 2.0, None]


def test_spent_budget_ends_who_was_inside_at_every_crash_instead_of_the_model() -> None:
    """Killed from outside while it got on, each time: perhaps for what it takes. The other came in between."""
    one = crashes()
    killed = Crash("killed", frozenset({1, 2, 3}))
    assert serving(one, [1], killed).poison == frozenset()
    assert serving(one, [1, 2], killed).poison == frozenset()
    assert serving(one, [1, 3], killed) == Verdict(0.0, frozenset({1}))
    assert serving(one, [2, 3], killed).delay_seconds is not None


def test_worker_that_somebody_ends_again_and_again_is_not_started_for_ever() -> None:
    """Nobody is blamed for it, a suspect that is inside neither; but the budget holds."""
    one = crashes(restarts_max=3)
    suspects = [serving(one, [1, 2]), serving(one, [1, 2])]
    assert [verdict.delay_seconds for verdict in suspects] == [0.0, 2.0]
    outside = Crash("outside")
    verdicts = [serving(one, [1], outside), serving(one, [1], outside)]
    assert [verdict.poison for verdict in verdicts] == [frozenset(), {1}]


def test_model_at_which_one_after_the_other_is_blamed_is_at_fault_itself() -> None:
    """Unless somebody got on or was served in between."""
    one = crashes()

    def blamed(first: int) -> list[Verdict]:
        return [serving(one, [request_id]) for request_id in range(first, first + 50) for _ in range(2)]

    assert None in [verdict.delay_seconds for verdict in blamed(0)]
    one.reset()
    for request_id in range(50):
        serving(one, [request_id, 1000 + request_id], Crash("fault", frozenset({1000 + request_id})))
        verdict = serving(one, [request_id])
        assert verdict.poison == {request_id}
        if request_id % limits.poison_in_a_row_max == 0:
            one.served()


def test_permanent_end_gives_the_model_up() -> None:
    """Another start is of no use, whoever was inside."""
    verdict = crashes().serving(0, [1], FAULT, served_seconds=1, permanent=True)
    assert verdict.delay_seconds is None
    assert crashes().at_load(0, "fault", permanent=True) is None


def test_killed_load_tells_nothing_once_or_where_the_model_has_loaded() -> None:
    """A kill from outside; a fault of its own tells that it cannot load."""
    one = crashes(restarts_max=100)
    told: list[bool] = []
    for _ in range(2):
        one.at_load(0, "killed", permanent=False)
        told.append(one.load_says_nothing)
    one.loaded()
    for kind in ("killed", "outside", "fault"):
        one.at_load(0, kind, permanent=False)
        told.append(one.load_says_nothing)
    assert told == [True, False, True, True, False]
