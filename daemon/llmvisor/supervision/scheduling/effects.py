"""What goes into a scheduler and what comes out: settings and tickets of requests in, effects out. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmvisor.supervision.scheduling.state import State

Priority = Literal["low", "normal", "high"]

RefusalKind = Literal[
    "queue_full",
    "shutting_down",
    "model_loading",
    "model_load_failed",
    "model_unavailable",
    "insufficient_memory",
    "runtime_crashed",
    "unloaded",
    "poison_request",
    "timeout",
]


class Ticket(msgspec.Struct, frozen=True):
    """A request that wants to run. `weight` is the sequences it takes; 0 for one that needs the model and no slot."""

    id: int
    weight: int
    arrived: float
    keep_alive_seconds: float | None = None
    """How long the worker that runs it is to stay after that; None leaves what is set."""
    client: str = ""
    """Whose it is: clients take turns."""
    priority: Priority = "normal"
    deadline: float | None = None
    """When it is wanted no more, on the clock of `arrived`."""
    resume: bool = True
    """The end of the worker that runs it is a pause; otherwise an error."""


class SchedulerSettings(msgspec.Struct, frozen=True):
    """What the configuration says of one model's scheduling, in seconds and requests."""

    queue_limit: int
    """Requests that wait beside those that run."""
    parallel: int
    """Sequences that are going to run together, where no worker has said yet."""
    load_timeout_seconds: float
    idle_timeout_seconds: float
    """0 = never unloaded for idleness."""
    keep_loaded: bool = False
    """Preloaded or pinned: started again after a crash although nobody waits."""


class StartWorker(msgspec.Struct, frozen=True):
    """Start a worker and load the model."""


class StopWorker(msgspec.Struct, frozen=True):
    rung: Literal["close", "abort", "kill"]
    reason: str


class Grant(msgspec.Struct, frozen=True):
    """Send this request to the worker."""

    id: int


class Suspend(msgspec.Struct, frozen=True):
    """The worker of this request is gone; it waits again, for the next one."""

    id: int
    reason: str


class Refuse(msgspec.Struct, frozen=True):
    """End this request with an error."""

    id: int
    kind: RefusalKind
    reason: str
    retry_after_seconds: float | None = None


class Expire(msgspec.Struct, frozen=True):
    """The deadline of a request that runs is over: whoever asked is told, and the worker is to let go of it."""

    id: int


class Changed(msgspec.Struct, frozen=True):
    """The state is another one now."""

    old: State
    new: State


Effect = StartWorker | StopWorker | Grant | Suspend | Refuse | Expire | Changed
