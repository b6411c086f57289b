"""What one daemon hands to the next of its worker processes, when it is upgraded in place. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from llmvisor.control.api import Postmortem
from llmvisor_runtimes.protocol import ModelInfo
from llmvisor_runtimes.protocol.reports import Confined

Fd = Annotated[int, msgspec.Meta(gt=2, lt=2**20)]


class LogPipe(msgspec.Struct, frozen=True):
    """A pipe with what a worker prints, and the line that has begun."""

    fd: Fd
    rest: bytes = b""
    skipping: bool = False
    """The line was too long: what is left of it is dropped."""


class WorkerHandover(msgspec.Struct, frozen=True):
    """A process that runs, and the daemon's ends of its pipes."""

    pid: Annotated[int, msgspec.Meta(gt=1, lt=2**31)]
    nonce: str
    command_fd: Fd
    report_fd: Fd
    logs: list[LogPipe]
    unread: bytes = b""
    """Of a report: read from the pipe, and not whole yet."""
    unsent: bytes = b""
    """Commands that the pipe had no room for."""
    last_lines: list[bytes] = []

    @property
    def fds(self) -> list[int]:
        return [self.command_fd, self.report_fd, *(pipe.fd for pipe in self.logs)]


class History(msgspec.Struct, frozen=True):
    """What is known of a model's crashes, whether it has a worker or not."""

    quarantined: dict[str, float]
    """Until when requests are refused, by their digests, oldest first; on the monotonic clock."""
    postmortems: list[Postmortem]
    """Oldest first."""


class RuntimeHandover(msgspec.Struct, frozen=True):
    """A loaded model's worker, and what its runtime knows of it. Times are the monotonic clock's."""

    model: str
    config: bytes
    """The `ModelConfig` that the worker runs with, as MessagePack: another version may know other keys."""
    worker: WorkerHandover
    info: ModelInfo
    next_id: int
    """Of requests: the worker may still hold earlier ones' names."""
    loaded_at: str | None
    ready_at: float
    active_at: float
    idle_deadline: float | None = None
    keep_alive_seconds: float | None = None
    restarts: int = 0
    threads: int | None = None
    """What the worker was last told to compute with."""
    confined: Confined | None = None
    """How it is kept from what it does not need."""
    reserved_bytes: int = 0
    """Memory that was set aside for it."""
