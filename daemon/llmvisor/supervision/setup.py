"""What every runtime of a daemon shares: its ways to the world outside, as arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from llmvisor import limits
from llmvisor.clock import Clock
from llmvisor.config.tree import ModelConfig, Sandbox
from llmvisor.control.api import RuntimeStatus
from llmvisor.supervision.cpu import CoreShares
from llmvisor.supervision.handover import WorkerHandover
from llmvisor.supervision.scheduling.effects import SchedulerSettings
from llmvisor.supervision.scheduling.restart import RestartLimits, RestartPolicy
from llmvisor.supervision.scheduling.scheduler import Scheduler
from llmvisor.supervision.workers.reaper import WorkerExit
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor.supervision.workers.worker import Worker
from llmvisor_runtimes.protocol import Report


class StartsWorkers(Protocol):
    """`worker.start_worker` with everything but the worker's own affairs filled in."""

    def __call__(
        self,
        spec: WorkerSpec,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
        on_exit: Callable[[WorkerExit], None],
    ) -> Awaitable[Worker]:
        """Raises `SpawnFailed`."""
        ...


class AdoptsWorkers(Protocol):
    """`worker.adopt_worker` with everything but the worker's own affairs filled in."""

    def __call__(
        self,
        given: WorkerHandover,
        spec: WorkerSpec,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
        on_exit: Callable[[WorkerExit], None],
    ) -> Worker:
        """Raises OSError."""
        ...


def _adopt_nobody(given: WorkerHandover, spec: WorkerSpec, **callbacks: object) -> Worker:
    del spec, callbacks
    raise OSError(f"nobody goes on with worker {given.pid}")


class RuntimeSetup(msgspec.Struct):
    start_worker: StartsWorkers
    admit: Callable[[str], Awaitable[asyncio.Future[None]]]
    """Wait until memory for a model whose file is sound is on its way: see `Admission.admit`. Raises
    `ModelLoadFailed` or `InsufficientMemory`, and so does what it gives."""
    file_signature: Callable[[ModelConfig], object]
    """Changes when the model's file does."""
    publish: Callable[[RuntimeStatus], None]
    clock: Clock
    random: Callable[[], float]
    cores: CoreShares
    state_dir: str
    """Where workers leave what they have computed of prompts; empty = nowhere."""
    python: Callable[[str], str]
    """The interpreter of a backend's workers."""
    arrived: Callable[[str], None] = lambda _: None
    """Told of each request for a model."""
    settled: Callable[[], None] = lambda: None
    """Told whenever a runtime has done all that followed from an event."""
    sandbox: Sandbox = "auto"
    """Where a model does not say."""
    adopt_worker: AdoptsWorkers = _adopt_nobody


def make_scheduler(config: ModelConfig, random: Callable[[], float]) -> Scheduler:
    """The scheduler of a model that is configured so."""
    policy = RestartPolicy(
        restarts_max=config.restart.max,
        window_seconds=config.restart.window,
        backoff_seconds=config.restart.backoff,
        stable_seconds=limits.stable_seconds,
        random=random,
    )
    return Scheduler(scheduler_settings(config), policy)


def restart_limits(config: ModelConfig) -> RestartLimits:
    """What the configuration says of restarts."""
    return RestartLimits(config.restart.max, config.restart.window, config.restart.backoff)


def scheduler_settings(config: ModelConfig) -> SchedulerSettings:
    """What the configuration says of a model's scheduling."""
    return SchedulerSettings(
        queue_limit=config.queue_limit,
        parallel=config.parallel,
        load_timeout_seconds=config.load_timeout,
        idle_timeout_seconds=config.idle_timeout,
        keep_loaded=config.preload or config.pinned,
    )
