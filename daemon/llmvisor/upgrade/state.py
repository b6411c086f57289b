"""What one run of the daemon hands to the next, as bytes. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.supervision.handover import RuntimeHandover
from llmvisor_runtimes.protocol import PROTOCOL_VERSION

STATE_VERSION = 1
"""Another one whenever a Struct of the state changes in a way that an older or newer daemon would misread."""

Fd = Annotated[int, msgspec.Meta(gt=2, lt=2**20)]


class ListenerHandover(msgspec.Struct, frozen=True):
    """A socket that listens, with the connections that wait in its backlog."""

    kind: Literal["tcp", "unix"]
    fd: Fd
    host: str = ""
    """As the configuration had it when it was bound."""
    port: int = 0
    handed_over: bool = False
    """It is a service manager's."""
    bound_port: int = 0

    def serves(self, host: str, port: int) -> bool:
        """Whether it is the TCP socket that a configuration with this host and port wants."""
        same = self.handed_over or (self.host == host and port in {self.port, self.bound_port})
        return self.kind == "tcp" and same


class DaemonHandover(msgspec.Struct, frozen=True):
    """What only the same version of the state understands. Times are the monotonic clock's."""

    runtimes: list[RuntimeHandover]
    started: float
    started_at: str
    upgrades: int
    """How often this process has been upgraded, with the one that is under way."""
    arrivals: dict[str, tuple[float, float]] = {}
    """Of requests, by model."""
    histories: dict[str, bytes] = {}
    """What is known of crashes, by model: `History`, as MessagePack, since another version may know less."""
    protocol_version: int = PROTOCOL_VERSION


class Envelope(msgspec.Struct, frozen=True):
    """What every version understands, and the rest as bytes: a program that cannot read those still serves whoever
    waits."""

    version: int
    pid: int
    """Whose it is: nobody else's descriptors bear these numbers."""
    lock_fd: Fd
    socket_path: str
    listeners: list[ListenerHandover]
    connections: list[ConnectionHandover]
    worker_fds: list[Fd]
    """Of all workers; `state` tells whose they are."""
    state: bytes

    @property
    def fds(self) -> list[int]:
        """All of them, which the next run owns."""
        return [self.lock_fd, *(item.fd for item in (*self.listeners, *self.connections)), *self.worker_fds]


class StateRefused(Exception):
    """The state is none that this version can go on with."""


def seal(
    state: DaemonHandover,
    *,
    pid: int,
    lock_fd: int,
    socket_path: str,
    listeners: list[ListenerHandover],
    connections: list[ConnectionHandover],
) -> Envelope:
    """All that one run hands to the next."""
    return Envelope(
        STATE_VERSION,
        pid,
        lock_fd,
        socket_path,
        listeners,
        connections,
        [fd for runtime in state.runtimes for fd in runtime.worker.fds],
        msgspec.msgpack.encode(state),
    )


def encode_envelope(envelope: Envelope) -> bytes:
    return msgspec.msgpack.encode(envelope)


def open_envelope(data: bytes) -> Envelope:
    """Raises `StateRefused`."""
    try:
        return msgspec.msgpack.decode(data, type=Envelope)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise StateRefused(f"the state cannot be read: {error}") from error


def decode_state(envelope: Envelope) -> DaemonHandover:
    """Raises `StateRefused`."""
    if envelope.version != STATE_VERSION:
        raise StateRefused(f"the state has version {envelope.version}, and this llmvisor knows {STATE_VERSION}")
    try:
        return msgspec.msgpack.decode(envelope.state, type=DaemonHandover)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise StateRefused(f"the state cannot be read: {error}") from error
