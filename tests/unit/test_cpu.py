"""Cores are shared out among the models that compute, and never two models' threads on one core where it can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmvisor.supervision.cpu import CoreShares, parts


class Told:
    """What each model was told last, and how often."""

    def __init__(self, cores: int, **fixed: int) -> None:
        self.threads: dict[str, int] = {}
        self.calls = 0
        self.shares = CoreShares(cores, fixed, self._tell)

    def _tell(self, model: str, threads: int) -> None:
        self.threads[model] = threads
        self.calls += 1


def test_model_that_computes_alone_has_all_cores() -> None:
    told = Told(8)
    told.shares.begin("a")
    assert told.threads == {"a": 8}
    assert told.shares.threads("a") == 8


def test_second_model_takes_half_and_gives_it_back() -> None:
    """1. One model computes. 2. Another begins, and ends. Result: halves, then all again, each told in time."""
    told = Told(8)
    told.shares.begin("a")
    told.shares.begin("b")
    assert told.threads == {"a": 4, "b": 4}
    told.shares.end("b")
    assert told.threads == {"a": 8, "b": 4}


def test_more_models_than_cores_have_one_thread_each() -> None:
    told = Told(2)
    for model in "abc":
        told.shares.begin(model)
    assert told.threads == {"a": 1, "b": 1, "c": 1}


def test_nothing_is_said_where_nothing_changes() -> None:
    told = Told(2)
    for _ in range(3):
        told.shares.begin("a")
        told.shares.end("a")
    assert told.calls == 1


def test_new_worker_is_told_again() -> None:
    """A worker that was replaced does not know what the one before it was told."""
    told = Told(2)
    told.shares.begin("a")
    told.shares.forget("a")
    assert told.shares.threads("a") is None
    told.shares.begin("a")
    assert told.calls == 2


def test_threads_set_by_hand_are_kept_and_the_rest_is_shared() -> None:
    told = Told(8, hand=6)
    told.shares.begin("a")
    told.shares.begin("hand")
    assert told.threads == {"a": 2}
    assert told.shares.threads("hand") == 6
    told.shares.end("hand")
    assert told.threads == {"a": 8}


@given(st.integers(1, 256), st.integers(0, 300))
def test_parts_are_equal_and_use_every_core(cores: int, count: int) -> None:
    shared = parts(cores, count)
    assert len(shared) == count
    assert sum(shared) == (max(cores, count) if count else 0)
    assert all(each >= 1 for each in shared)
    assert max(shared, default=0) - min(shared, default=0) <= 1


def test_models_that_take_each_others_names_keep_their_shares() -> None:
    """What was told to one stays told, and the next share goes to it under its new name."""
    told: list[tuple[str, int]] = []
    cores = CoreShares(8, {"b": 2}, lambda model, threads: told.append((model, threads)))
    cores.begin("a")
    assert told == [("a", 8)]
    cores.exchange("a", "b")
    assert (cores.threads("a"), cores.threads("b")) == (2, 8)
    cores.begin("a")
    assert told == [("a", 8), ("b", 6)]


def test_cores_and_fixed_threads_change_while_models_compute() -> None:
    """Those that compute are told at once."""
    told: list[tuple[str, int]] = []
    cores = CoreShares(8, {}, lambda model, threads: told.append((model, threads)))
    cores.begin("a")
    cores.configure(4)
    assert told[-1] == ("a", 4)
    cores.begin("b")
    assert told[-2:] == [("a", 2), ("b", 2)]
    cores.fix("b", 1)
    assert told[-1] == ("a", 3)
    cores.fix("b", None)
    assert cores.threads("a") == 2
