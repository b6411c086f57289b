"""What a runtime shows of itself."""

from __future__ import annotations

import msgspec

from llmvisor.control.api import ModelState, ProgressStatus, RuntimeStatus
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.scheduling.state import State
from llmvisor_runtimes.limits import tick_interval_seconds
from llmvisor_runtimes.protocol import Confined, LoadProgress, ModelInfo, Tick

WAITS_FOR_MEMORY = "memory"
"""The stage of a load that has no memory yet."""


class Facts(msgspec.Struct):
    """What the actor knows beside the scheduler's state."""

    model: str
    tier: str | None
    backend: str
    since: str
    pid: int | None = None
    tick: Tick | None = None
    info: ModelInfo | None = None
    progress: LoadProgress | None = None
    last_lines: list[str] = []
    confined: Confined | None = None


def model_state(scheduler: Scheduler) -> ModelState:
    """The state as people know it: a loaded model that generates is busy."""
    state = scheduler.state
    if state is State.READY:
        return "busy" if scheduler.slots_busy else "loaded"
    return "not_loaded" if state is State.CLOSED else state.value


def runtime_status(scheduler: Scheduler, facts: Facts, now: float, *, threads: int | None, key: str) -> RuntimeStatus:
    """All that is known at the moment."""
    tick, info, progress = facts.tick, facts.info, facts.progress
    backoff, idle = scheduler.backoff_until, scheduler.idle.deadline
    loading = scheduler.state is State.LOADING and progress is not None
    return RuntimeStatus(
        id=key,
        model=facts.model,
        tier=facts.tier,
        backend=facts.backend,
        state=model_state(scheduler),
        since=facts.since,
        pid=facts.pid,
        phase=tick.phase if tick else None,
        restarts=scheduler.restarts,
        memory=tick.rss_bytes if tick else None,
        slots=info.slots if info else 0,
        slots_busy=scheduler.slots_busy,
        queued=scheduler.queued,
        threads=threads,
        tokens_per_second=tick.tokens / tick_interval_seconds if tick else 0.0,
        idle_left_seconds=None if idle is None else max(0.0, idle - now),
        progress=ProgressStatus(progress.stage, progress.done, progress.total, progress.unit)
        if loading and progress
        else None,
        error=scheduler.error,
        retry_in_seconds=None if backoff is None else max(0.0, backoff - now),
        last_lines=facts.last_lines if scheduler.state in {State.BACKOFF, State.FAILED} else [],
        backend_version=info.backend_version if info else None,
        load_seconds=info.load_seconds if info else None,
        sandbox=facts.confined.in_force if facts.confined and facts.pid else None,
        sandbox_missing=facts.confined.missing if facts.confined and facts.pid else [],
    )
