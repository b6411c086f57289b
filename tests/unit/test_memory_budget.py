"""Whether one more model fits."""

from __future__ import annotations

import os
import re

from llmvisor.supervision.memory.budget import MemoryBudget
from llmvisor.supervision.memory.machine_memory import MachineMemory, process_memory

GIB = 2**30


def budget(*, limit: int = 10 * GIB, available: int = 100 * GIB) -> MemoryBudget:
    return MemoryBudget(limit, available=lambda: available)


def test_models_fit_up_to_the_limit_to_the_byte() -> None:
    """What is reserved adds up; one byte more is refused."""
    one = budget(limit=10)
    one.reserve("a", 6)
    one.reserve("b", 4)
    assert not one.fits("c", 1)


def test_refusal_says_what_is_missing_and_who_holds_it() -> None:
    """Enough for a person to decide what to unload."""
    one = budget(limit=30 * GIB)
    one.reserve("big", 20 * GIB)
    refusal = str(one.refusal(20 * GIB))
    assert re.search(r"20\.0 GiB.*30\.0 GiB.*big \(20\.0 GiB\)", refusal)
    assert "llmctl unload" in refusal
    assert "no model is loaded" in str(budget().refusal(11 * GIB))


def test_machine_that_is_full_refuses_within_the_limit() -> None:
    """Others' processes count: the limit alone promises nothing."""
    one = budget(available=GIB)
    assert not one.fits("a", 2 * GIB)
    assert "1,024 MiB is free on the machine" in str(one.refusal(2 * GIB))


def test_release_gives_the_room_back() -> None:
    """Also where there was nothing to release."""
    one = budget(limit=10)
    one.reserve("a", 10)
    one.release("a")
    one.release("a")
    one.reserve("b", 10)
    assert not one.fits("a", 1)
    assert "held by b" in str(one.refusal(1))


def test_model_that_loads_again_counts_once() -> None:
    """A restart need not fit beside itself."""
    one = budget(limit=10)
    one.reserve("a", 8)
    assert one.fits("a", 10)
    assert not one.fits("a", 11)
    one.reserve("a", 10)
    assert one.free_bytes() == 0


def test_what_is_mapped_of_a_models_file_is_not_free_although_the_machine_says_so() -> None:
    """The kernel could drop these pages: of a model that computes with them they are read again at each step."""
    machine = {"available": 10}
    one = MemoryBudget(100, available=lambda: machine["available"])
    one.reserve("a", 6)
    assert (one.free_bytes(), one.attainable_bytes()) == (4, 10)
    machine["available"] = 8  # it has loaded: 2 of its own, 4 of the file's
    one.told("a", 6, own_bytes=2)
    assert (one.free_bytes(), one.attainable_bytes()) == (4, 10)
    machine["available"] = 4  # a model that was read into memory of its own
    one.told("a", 6)
    assert (one.free_bytes(), one.attainable_bytes()) == (4, 10)


def test_worker_that_takes_more_than_was_expected_holds_that() -> None:
    """And one that takes less keeps what was promised to it."""
    one = budget(limit=10)
    one.reserve("a", 4)
    one.told("a", 7)
    assert (one.held_bytes("a"), one.excess_bytes("a"), one.free_bytes()) == (7, 3, 3)
    one.told("a", 2)
    assert (one.held_bytes("a"), one.excess_bytes("a"), one.free_bytes()) == (4, -2, 6)


def test_process_that_waits_for_its_memory_is_a_part_of_what_it_needs() -> None:
    """It is started while others leave: what it takes by then is free for nobody but its own model."""
    free = 10
    budget = MemoryBudget(10, available=lambda: free)
    budget.told("a", 3)
    free = 7
    assert budget.free_bytes() == 7
    assert budget.free_bytes(without=["a"]) == 10
    budget.reserve("a", 10)
    assert (budget.held_bytes("a"), budget.free_bytes()) == (10, 0)


def test_two_workers_can_take_each_others_keys() -> None:
    """As when a replacement takes the name."""
    one = budget(limit=10)
    one.reserve("a", 4)
    one.reserve("a#2", 5)
    one.exchange("a", "a#2")
    assert (one.held_bytes("a"), one.held_bytes("a#2")) == (5, 4)


def test_memory_of_a_process_is_told_while_it_lives() -> None:
    """All of it, and what is no page of a file."""
    found = process_memory(os.getpid())
    assert found is not None
    assert 0 < found.own_bytes < found.rss_bytes
    assert process_memory(2**22 + 1) is None


def test_machine_has_memory() -> None:
    """The figure that shares such as 80% are taken of."""
    assert MachineMemory({}).total() > 64 * 2**20
