"""What a run of the daemon begins with, where an earlier run of the same process left something."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

import msgspec

from llmvisor.config.complete import is_loopback
from llmvisor.config.tree import Config
from llmvisor.errors import StartError
from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.listen import open_tcp
from llmvisor.signals import HeldSignals
from llmvisor.supervision.handover import RuntimeHandover
from llmvisor.supervision.workers.adopt import children_but, end_children
from llmvisor.upgrade.fault import fail_on_purpose, is_wanted
from llmvisor.upgrade.memory_file import read_memory_file
from llmvisor.upgrade.preflight import PREFLIGHT_VARIABLE
from llmvisor.upgrade.reexec import COLD_VARIABLE, STATE_VARIABLE, command, execute
from llmvisor.upgrade.state import (
    DaemonHandover,
    Envelope,
    ListenerHandover,
    StateRefused,
    decode_state,
    open_envelope,
)

_REASON_CHARS_MAX = 500


class Inheritance(msgspec.Struct, frozen=True):
    """Without an envelope the daemon just starts. Without a state its workers are new: those that were are gone."""

    envelope: Envelope | None = None
    state: DaemonHandover | None = None
    problem: str | None = None
    """Why it could not go on with all that was left."""

    @property
    def runtimes(self) -> list[RuntimeHandover]:
        return [] if self.state is None else self.state.runtimes

    @property
    def listeners(self) -> list[ListenerHandover]:
        return [] if self.envelope is None else self.envelope.listeners

    @property
    def connections(self) -> list[ConnectionHandover]:
        return [] if self.envelope is None else self.envelope.connections

    @property
    def lock_fd(self) -> int | None:
        return None if self.envelope is None else self.envelope.lock_fd

    @property
    def upgrades(self) -> int:
        """How often this process has been upgraded."""
        return 0 if self.state is None else self.state.upgrades


def inherit(environ: MutableMapping[str, str]) -> Inheritance:
    """What the environment names, and names no longer after this."""
    name, failure = environ.pop(STATE_VARIABLE, None), environ.pop(COLD_VARIABLE, None)
    if failure is not None:
        end_children(children_but([]))
        return Inheritance(problem=failure)
    if name is None:
        return Inheritance()
    envelope, state, problem = None, None, None
    try:
        envelope = _read(name, pid=os.getpid())
        fail_on_purpose(environ, "state", StateRefused("a fault on purpose"))
        state = decode_state(envelope)
        if is_wanted(environ, "protocol"):
            state = msgspec.structs.replace(state, protocol_version=0)
    except (StateRefused, OSError, ValueError) as error:
        problem = str(error)
    for fd in [name, *(envelope.worker_fds if envelope is not None and state is None else [])]:
        with suppress(OSError, ValueError):
            os.close(int(fd))
    end_children(children_but([] if state is None else [one.worker.pid for one in state.runtimes]))
    return Inheritance(envelope, state, problem)


def start_with_nothing(environ: Mapping[str, str], reason: str) -> None:
    """Execute the program once more: it could not start with what was left, and may without.

    Workers are ended, and who waits in a backlog is sent away. Comes back where it cannot be executed.
    """
    kept = {name: value for name, value in environ.items() if name != STATE_VARIABLE}
    with HeldSignals() as held, suppress(OSError):
        execute(command(), {**kept, COLD_VARIABLE: reason[:_REASON_CHARS_MAX]}, [], held)


def _read(name: str, *, pid: int) -> Envelope:
    """Raises `StateRefused`, OSError, ValueError."""
    envelope = open_envelope(read_memory_file(int(name)))
    if envelope.pid != pid:
        raise StateRefused(f"the state is that of process {envelope.pid}")
    return envelope


def is_preflight(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is the trial of a new program."""
    return PREFLIGHT_VARIABLE in environ


def answer_preflight(environ: MutableMapping[str, str], config: Config) -> int:
    """The exit code of the trial: 0 where this program can go on with the state. The reason goes to stderr."""
    try:
        fail_on_purpose(environ, "preflight", StateRefused("a fault on purpose"))
        envelope = _read(environ.get(STATE_VARIABLE, ""), pid=os.getppid())
        decode_state(envelope)
        _check(envelope, config)
    except StartError as error:
        print(error.message, file=sys.stderr)
        return os.EX_CONFIG
    except (StateRefused, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return os.EX_CONFIG
    return os.EX_OK


def _check(envelope: Envelope, config: Config) -> None:
    """Raises `StateRefused` where the configuration wants what only a full restart brings, `StartError` where it wants
    a port that cannot be had."""
    activated = any(listener.kind == "unix" and listener.handed_over for listener in envelope.listeners)
    wanted = config.control.socket or ""
    if not activated and wanted != envelope.socket_path:
        raise StateRefused(f"control.socket is {wanted} now, and {envelope.socket_path} is open: restart it in full")
    host, port = config.server.host, config.server.port
    activated_tcp = [listener for listener in envelope.listeners if listener.kind == "tcp" and listener.handed_over]
    if is_loopback(host) and not all(is_loopback(listener.host) for listener in activated_tcp):
        # What is asked of a public address is asked no longer, and the socket would stay where it is.
        raise StateRefused(f"server.host is {host} now, and the service manager's socket was for others: restart it")
    if not any(listener.serves(host, port) for listener in envelope.listeners):
        open_tcp(host, port).close()
