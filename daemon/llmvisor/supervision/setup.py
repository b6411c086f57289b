"""What every runtime of a daemon shares: its ways to the world outside, as arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from llmvisor.clock import Clock
from llmvisor.config.tree import ModelConfig
from llmvisor.control.api import RuntimeStatus
from llmvisor.supervision.reaper import WorkerExit
from llmvisor.supervision.spawn import WorkerSpec
from llmvisor.supervision.worker import Worker
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


class RuntimeSetup(msgspec.Struct, frozen=True):
    start_worker: StartsWorkers
    admit: Callable[[str], Awaitable[None]]
    """Whether the model's file is sound and fits. Raises `ModelLoadFailed` or `InsufficientMemory`."""
    file_signature: Callable[[ModelConfig], object]
    """Changes when the model's file does."""
    publish: Callable[[RuntimeStatus], None]
    clock: Clock
    random: Callable[[], float]
    python: Callable[[str], str]
    """The interpreter of a backend's workers."""
