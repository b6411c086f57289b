"""What is done when memory runs low although every load was admitted."""

from __future__ import annotations

from llmvisor import limits
from llmvisor.supervision.memory.evict import Resident
from llmvisor.supervision.memory.pressure import PressureRule, Relief, Worker

SOFT, HARD = 100, 40
WAIT = limits.memory_relief_seconds


def worker(
    key: str, rss: int, *, phase: str = "busy", excess: int = 0, pinned: bool = False, rate: float = 1
) -> Worker:
    held = rss if excess > 0 else rss - excess
    resident = Resident(key, held, phase, pinned, uses_per_second=rate)  # pyright: ignore[reportArgumentType]
    return Worker(resident, rss, excess)


class Looks:
    """One rule, looked at again and again."""

    def __init__(self) -> None:
        self.rule = PressureRule()
        self.now = 1000.0

    def __call__(self, free: int, *workers: Worker, after: float = WAIT) -> Relief:
        self.now += after
        return self.rule.look(workers, free_bytes=free, soft_bytes=SOFT, hard_bytes=HARD, now=self.now)


def test_nothing_is_done_while_enough_is_free() -> None:
    """On the line too."""
    assert Looks()(SOFT, worker("a", 500), worker("b", 500, phase="idle")) == Relief()


def test_caches_go_first_then_the_cheapest_idle_model() -> None:
    """Each step has time to show before the next one."""
    look = Looks()
    workers = [worker("busy", 500), worker("dear", 60, phase="idle"), worker("cheap", 60, phase="idle", rate=0.1)]
    relief = look(60, *workers)
    assert (relief.trim, relief.trim_answers, relief.unload) == (["busy", "dear", "cheap"], True, [])
    assert look(60, *workers, after=0.1) == Relief()
    assert look(60, *workers).unload == ["cheap"]
    assert look(60, *workers, after=0.1) == Relief()


def test_as_many_idle_models_go_as_are_needed() -> None:
    """All of them where even that is too little."""
    look = Looks()
    idle = [worker("a", 30, phase="idle"), worker("b", 30, phase="idle", rate=2)]
    look(60, *idle)
    assert sorted(look(60, *idle).unload) == ["a", "b"]


def test_pinned_model_is_not_unloaded_and_a_busy_one_is_not_stopped_above_the_hard_line() -> None:
    """Low memory is no reason yet to disturb a request."""
    look = Looks()
    workers = [worker("p", 50, phase="idle", pinned=True), worker("b", 900, excess=800)]
    for _ in range(5):
        relief = look(HARD, *workers)
        assert (relief.unload, relief.stop) == ([], None)


def test_worker_furthest_above_its_estimate_is_stopped_below_the_hard_line() -> None:
    """Not the largest, and only once nobody idle is left; one at a time."""
    look = Looks()
    workers = [worker("large", 900), worker("leak", 300, excess=250), worker("little", 200, excess=5)]
    idle = worker("idle", 10, phase="idle")
    assert look(10, *workers, idle).stop is None
    relief = look(10, *workers, idle)
    assert (relief.unload, relief.stop) == (["idle"], None)
    assert look(10, *workers).stop == "leak"
    assert look(10, *workers, after=0.1).stop is None


def test_largest_unpinned_worker_is_stopped_where_nobody_is_above_its_estimate() -> None:
    """As the kernel would, but with its requests kept."""
    look = Looks()
    workers = [worker("p", 900, pinned=True), worker("a", 500, excess=-10), worker("b", 300)]
    look(10, *workers)
    assert look(10, *workers).stop == "a"
    alone = Looks()
    alone(10, workers[0])
    assert alone(10, workers[0]).stop is None


def test_pinned_model_a_little_above_its_estimate_is_not_stopped_for_what_others_take() -> None:
    """Its interpreter stands in no file; far above it is another matter."""
    mib = 2**20
    pinned, large = worker("p", 900 * mib, excess=100 * mib, pinned=True), worker("a", 500 * mib, excess=-mib)
    look = Looks()
    look(10, pinned, large)
    assert look(10, pinned, large).stop == "a"
    look = Looks()
    leaks = worker("p", 900 * mib, excess=400 * mib, pinned=True)
    look(10, leaks, large)
    assert look(10, leaks, large).stop == "p"


def test_nothing_more_is_done_while_a_model_leaves() -> None:
    """Its memory is on its way back."""
    look = Looks()
    look(10, worker("a", 500), worker("b", 300, phase="leaving"))
    assert look(10, worker("a", 500), worker("b", 300, phase="leaving")) == Relief()


def test_model_that_finishes_what_runs_holds_nothing_up() -> None:
    """That may take any time, and the machine has none."""
    look = Looks()
    workers = [worker("a", 500, phase="draining"), worker("b", 60, phase="idle")]
    look(60, *workers)
    assert look(60, *workers).unload == ["b"]


def test_worker_above_its_estimate_is_asked_for_its_caches_now_and_then() -> None:
    """Also with memory enough, for what it has more was promised to nobody."""
    look = Looks()
    mib = 2**20
    above = worker("a", 1300 * mib, excess=300 * mib)
    assert look(500, above).trim == ["a"]
    assert look(500, above).trim == []
    assert look(500, above, after=limits.memory_trim_seconds).trim == ["a"]
    assert look(500, worker("b", 300 * mib, excess=200 * mib)).trim == [], "its interpreter"
    assert look(500, worker("c", 10_300 * mib, excess=300 * mib)).trim == [], "a small part"


def test_relief_that_helped_begins_anew_the_next_time() -> None:
    """The daemon's own answers go again, and idle models have their time again."""
    look = Looks()
    idle = worker("a", 60, phase="idle")
    assert look(60, idle).trim_answers
    assert look(200, idle) == Relief()
    relief = look(60, idle)
    assert (relief.trim_answers, relief.unload) == (True, [])
