"""What one run of the daemon hands to the next: whole, or refused with the reason; and kept from anybody else."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from llmvisor.config.tree import Config, Control, ModelConfig
from llmvisor.http.connection_handover import ConnectionHandover
from llmvisor.supervision.handover import LogPipe, RuntimeHandover, WorkerHandover
from llmvisor.upgrade.fault import FAULT_VARIABLE
from llmvisor.upgrade.inherit import answer_preflight, inherit
from llmvisor.upgrade.memory_file import read_memory_file, write_memory_file
from llmvisor.upgrade.reexec import STATE_VARIABLE
from llmvisor.upgrade.state import (
    STATE_VERSION,
    DaemonHandover,
    Envelope,
    ListenerHandover,
    StateRefused,
    decode_state,
    encode_envelope,
    open_envelope,
    seal,
)
from llmvisor_runtimes.protocol import Memory, ModelInfo

INFO = ModelInfo("llama", 7, "Q4_0", 8, 8, 1, 9, ["chat"], Memory(1, 2, 3), 0.5, "mock", "1")
WORKER = WorkerHandover(
    4711, "ab" * 16, 60, 61, [LogPipe(62, b"half a li", skipping=True)], unread=b"\x01", unsent=b"\x02"
)
RUNTIME = RuntimeHandover(
    "light",
    msgspec.msgpack.encode(ModelConfig(backend="mock")),
    WORKER,
    INFO,
    next_id=7,
    loaded_at=None,
    ready_at=1.5,
    active_at=2.5,
)
STATE = DaemonHandover([RUNTIME], 1.0, "2026-01-01T00:00:00Z", 3, {"light": (2.0, 1.0)})


def envelope(*, pid: int | None = None, state: DaemonHandover = STATE) -> Envelope:
    return seal(
        state,
        pid=os.getpid() if pid is None else pid,
        lock_fd=50,
        socket_path="/run/llmvisor/control.sock",
        listeners=[ListenerHandover("tcp", 51, "127.0.0.1", 8000), ListenerHandover("unix", 52, handed_over=True)],
        connections=[ConnectionHandover(53, b"GET /")],
    )


def test_state_comes_back_as_it_was() -> None:
    """Every field, and all descriptors with it."""
    whole = open_envelope(encode_envelope(envelope()))
    assert whole == envelope()
    assert decode_state(whole) == STATE
    assert sorted(whole.fds) == [50, 51, 52, 53, 60, 61, 62]


def test_state_of_another_version_is_refused_but_its_sockets_are_known() -> None:
    """Whoever waits in a backlog is served by whatever program comes."""
    other = msgspec.structs.replace(envelope(), version=STATE_VERSION + 1, state=b"\xc1")
    whole = open_envelope(encode_envelope(other))
    assert [listener.fd for listener in whole.listeners] == [51, 52]
    with pytest.raises(StateRefused, match=f"version {STATE_VERSION + 1}"):
        decode_state(whole)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", msgspec.msgpack.encode({"version": 1})])
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(StateRefused):
        open_envelope(data)


def test_memory_file_gives_back_what_was_written() -> None:
    """More than one write or read takes, and wherever the file stands."""
    data = os.urandom(3_000_000)
    fd = write_memory_file(data)
    try:
        assert read_memory_file(fd) == data
        assert read_memory_file(fd) == data
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_memory_file_is_there_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS: a file that has lost its name does as well."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = write_memory_file(b"state")
    try:
        assert read_memory_file(fd) == b"state"
    finally:
        os.close(fd)


def test_daemon_that_just_starts_inherits_nothing() -> None:
    inherited = inherit({})
    assert (inherited.envelope, inherited.state, inherited.problem) == (None, None, None)
    assert (inherited.lock_fd, inherited.upgrades, inherited.runtimes, inherited.listeners) == (None, 0, [], [])


@pytest.mark.parametrize("name", ["", "nonsense", "-1", "999999"])
def test_state_that_is_not_there_is_told_and_nothing_is_inherited(name: str) -> None:
    environment = {STATE_VARIABLE: name}
    inherited = inherit(environment)
    assert inherited.envelope is None
    assert inherited.problem
    assert environment == {}


def test_state_of_another_process_is_not_taken_over() -> None:
    """The numbers of its descriptors mean others here: none of them is touched, and only the state is closed."""
    fd = write_memory_file(encode_envelope(envelope(pid=1)))
    inherited = inherit({STATE_VARIABLE: str(fd)})
    assert inherited.problem == "the state is that of process 1"
    assert inherited.envelope is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def config(socket: str = "/run/llmvisor/control.sock") -> Config:
    return Config(control=Control(socket=socket), models={"light": ModelConfig(backend="mock")})


def tried(whole: Envelope, configured: Config, environment: dict[str, str] | None = None) -> int:
    fd = write_memory_file(encode_envelope(whole))
    try:
        return answer_preflight({STATE_VARIABLE: str(fd), **(environment or {})}, configured)
    finally:
        os.close(fd)


def test_preflight_says_yes_to_the_state_of_its_parent() -> None:
    """And to nobody else's. Where the control socket is a service manager's, the configuration does not name it."""
    assert tried(envelope(pid=os.getppid()), config()) == 0
    assert tried(envelope(pid=os.getppid()), config("/elsewhere/control.sock")) == 0
    assert tried(envelope(pid=os.getpid()), config()) == 78


def test_preflight_refuses_another_control_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """The lock and the journal stand in its folder: that takes a full restart."""
    own = msgspec.structs.replace(envelope(pid=os.getppid()), listeners=[ListenerHandover("unix", 52)])
    assert tried(own, config()) == 0
    assert tried(own, config("/elsewhere/control.sock")) == 78
    assert "control.socket is /elsewhere/control.sock now" in capsys.readouterr().err


def test_preflight_refuses_a_state_that_it_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    other = msgspec.structs.replace(envelope(pid=os.getppid()), version=STATE_VERSION + 1)
    assert tried(other, config()) == 78
    assert f"version {STATE_VERSION + 1}" in capsys.readouterr().err


def test_preflight_fails_where_a_test_wants_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fault").write_text("preflight\n")
    assert tried(envelope(pid=os.getppid()), config(), {FAULT_VARIABLE: str(tmp_path / "fault")}) == 78
    assert capsys.readouterr().err == "a fault on purpose\n"
