"""Whether a worker gets on, judged by progress."""

from __future__ import annotations

from llmvisor.supervision.workers.watch import ProgressWatch
from llmvisor_runtimes.protocol import Delta, Phase, Step, Tick


def tick(phase: Phase, step: int) -> Tick:
    return Tick(step=step, phase=phase, active=1, waiting=0, tokens=0, rss_bytes=0)


def test_silence_is_a_hang() -> None:
    """A stopped process sends no tick at all."""
    watch = ProgressWatch(stall_seconds=5, now=100)
    watch.observe(tick("idle", 3), 101)
    assert watch.hung(105.9) is None
    assert "no progress for 5 s (phase idle, step 3)" in str(watch.hung(106))


def test_ticks_of_a_busy_engine_that_does_not_step_are_no_progress() -> None:
    """A worker that answers but no longer decodes is hung: what counts is the step number."""
    watch = ProgressWatch(stall_seconds=5, now=0)
    for second in range(6):
        watch.observe(tick("decode", 7), float(second))
    assert watch.hung(5.0) is not None


def test_an_engine_that_steps_is_never_hung() -> None:
    """Slow steps are progress as long as they come."""
    watch = ProgressWatch(stall_seconds=5, now=0)
    for second in range(0, 100, 4):
        watch.observe(tick("prefill", second), float(second))
        assert watch.hung(float(second)) is None


def test_idle_ticks_are_progress() -> None:
    """An idle worker has nothing to step for; its ticks are enough."""
    watch = ProgressWatch(stall_seconds=5, now=0)
    for second in range(100):
        watch.observe(tick("idle", 7), float(second))
        assert watch.hung(float(second)) is None


def test_deltas_are_progress() -> None:
    """Text that comes is progress, ticks or not."""
    watch = ProgressWatch(stall_seconds=5, now=0)
    watch.observe(Step([Delta(1, 0, "x", [1])]), 4.0)
    assert watch.deadline() == 9.0


def test_a_daemon_that_was_held_up_looks_once_more() -> None:
    """A check that comes far too late gives the worker a second, in which its waiting ticks are read."""
    watch = ProgressWatch(stall_seconds=5, now=0)
    assert watch.hung(60.0) is None
    assert watch.hung(60.9) is None
    assert watch.hung(61.0) is not None
