"""launchd hands over its sockets when it is asked for them by name."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.workers import executable

from llmctl.service_managers import Launchd
from llmvisor import activation
from llmvisor.activation import take_sockets


class FakeSystem:
    """`launch_activate_socket` and `free`, as the system's library has them."""

    def __init__(self, sockets: dict[bytes, list[int]]) -> None:
        self._sockets = sockets
        self._arrays: list[ctypes.Array[ctypes.c_int]] = []
        self.freed = 0

    def launch_activate_socket(self, name: bytes, fds: object, count: object) -> int:
        found = self._sockets.get(name)
        if found is None:
            return errno.ENOENT
        array = (ctypes.c_int * len(found))(*found)
        self._arrays.append(array)
        ctypes.cast(fds, ctypes.POINTER(ctypes.POINTER(ctypes.c_int)))[0] = ctypes.cast(  # pyright: ignore[reportArgumentType]
            array, ctypes.POINTER(ctypes.c_int)
        )
        ctypes.cast(count, ctypes.POINTER(ctypes.c_size_t))[0] = len(found)  # pyright: ignore[reportArgumentType]
        return 0

    def free(self, array: object) -> None:
        del array
        self.freed += 1


@pytest.fixture
def listening() -> Generator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        yield sock


def test_sockets_are_asked_for_by_name(listening: socket.socket) -> None:
    """Those of `http` and `control`; what launchd allocated is freed, and what it does not have is none."""
    system = FakeSystem({b"http": [os.dup(listening.fileno())]})

    def lookup(name: str) -> list[int]:
        return activation._launchd_fds(name, system)  # pyright: ignore[reportPrivateUsage, reportArgumentType]

    handed_over = take_sockets({}, launchd=lookup)
    assert [sock.getsockname() for sock in handed_over.tcp] == [listening.getsockname()]
    assert handed_over.unix == []
    assert system.freed == 1
    for sock in handed_over.tcp:
        assert not sock.get_inheritable()
        sock.close()


def test_nothing_is_taken_where_launchd_did_not_start_it() -> None:
    """ESRCH or ENOENT for each name: the daemon opens its own sockets."""
    system = FakeSystem({})
    handed_over = take_sockets({}, launchd=lambda name: activation._launchd_fds(name, system))  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    assert not handed_over.any


@pytest.mark.parametrize("loaded", [True, False])
def test_service_is_installed_again_and_uninstalled_whether_it_is_loaded_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, loaded: bool
) -> None:
    """launchd refuses to load what it has loaded, and to let go of what it has not."""
    program = executable(tmp_path / "launchctl", f"exit {0 if loaded else 113}")
    monkeypatch.setenv("PATH", str(Path(program).parent))
    manager = Launchd(tmp_path, tmp_path / "data", user=False)
    bootout = [["launchctl", "bootout", "system/org.llmvisor"]] if loaded else []
    bootstrap = ["launchctl", "bootstrap", "system", "/Library/LaunchDaemons/org.llmvisor.plist"]
    assert manager.after_install() == [*bootout, bootstrap]
    assert manager.before_uninstall() == bootout


@pytest.mark.parametrize(
    "environ",
    [
        {"LISTEN_PID": "7", "LISTEN_FDS": "x"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "-1"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "99999999"},
        {"LISTEN_PID": "7"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "8", "LISTEN_FDS": "1"},
    ],
)
def test_variables_that_are_not_for_us_take_no_descriptor(environ: dict[str, str]) -> None:
    """Absurd, or left over by another process: all are removed, and nothing is touched."""
    assert not take_sockets(environ, pid=7).any
    assert environ == {}
