"""Schedulers with short arguments, for tests of what they decide."""

from __future__ import annotations

from llmvisor.supervision.scheduling.effects import Changed, Effect, SchedulerSettings, Ticket
from llmvisor.supervision.scheduling.restart import RestartPolicy
from llmvisor.supervision.scheduling.scheduler import Scheduler


def scheduler(
    *,
    queue_limit: int = 64,
    parallel: int = 4,
    load_timeout_seconds: float = 300,
    idle_timeout_seconds: float = 300,
    keep_loaded: bool = False,
    restarts_max: int = 5,
) -> Scheduler:
    policy = RestartPolicy(
        restarts_max=restarts_max, window_seconds=60, backoff_seconds=(1, 10), stable_seconds=60, random=lambda: 1.0
    )
    settings = SchedulerSettings(
        queue_limit=queue_limit,
        parallel=parallel,
        load_timeout_seconds=load_timeout_seconds,
        idle_timeout_seconds=idle_timeout_seconds,
        keep_loaded=keep_loaded,
    )
    return Scheduler(settings, policy)


def ready(slots: int = 4, **settings: object) -> Scheduler:
    """A scheduler whose model is loaded and idle at time 1."""
    one = scheduler(**settings)  # pyright: ignore[reportArgumentType]
    one.load_wanted(0)
    one.loaded(slots, 1)
    return one


def without_changes(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Changed)]


def ticket(id: int, *, weight: int = 1, at: float = 0, keep_alive: float | None = None) -> Ticket:
    return Ticket(id, weight, at, keep_alive)
