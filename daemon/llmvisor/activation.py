"""Sockets that a service manager has opened, and hands over when the first client comes.

systemd passes descriptors from 3 on, told of in $LISTEN_FDS (sd_listen_fds(3)); launchd is asked for them by name
(launch_activate_socket(3)). They belong to the manager: clients that come while no daemon runs wait in them, and
their files are not ours to remove.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from llmvisor.config.complete import is_loopback
from llmvisor.errors import StartError
from llmvisor.listen import adopt_socket
from llmvisor.lock import EXIT_CONFIG
from llmvisor.notify import take

if TYPE_CHECKING:
    import ctypes

LISTEN_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
FIRST_FD = 3
LAUNCHD_SOCKETS = ("http", "control")
"""Their names in the property list."""

LaunchdLookup = Callable[[str], list[int]]
"""The descriptors of a name; none where launchd has none of that name for us."""


class HandedOver(msgspec.Struct, frozen=True):
    """Listening sockets that are a service manager's."""

    tcp: list[socket.socket] = []
    unix: list[socket.socket] = []

    @property
    def any(self) -> bool:
        return bool(self.tcp or self.unix)

    def check(self, host: str) -> None:
        """Raises `StartError` (78) where a socket is open to more machines than `server.host` says.

        What is asked of a public `server.host` cannot be got round by a socket unit.
        """
        for sock in self.tcp:
            bound = sock.getsockname()[0]
            if not is_loopback(bound) and is_loopback(host):
                raise StartError(
                    f"the service manager hands over a socket on {bound}, which is open to other machines, "
                    f"and server.host is {host}",
                    hint="listen on 127.0.0.1 in the socket unit, or set server.host as well",
                    exit_code=EXIT_CONFIG,
                )


def take_sockets(
    environ: MutableMapping[str, str], *, pid: int | None = None, launchd: LaunchdLookup | None = None
) -> HandedOver:
    """What is handed over to this process. The environment tells of it no longer. Raises `StartError`."""
    said = take(environ, LISTEN_VARIABLES)
    own_pid = os.getpid() if pid is None else pid
    fds = _systemd_fds(said) if said.get("LISTEN_PID") == str(own_pid) else []
    if not fds and launchd is not None:
        fds = [fd for name in LAUNCHD_SOCKETS for fd in launchd(name)]
    with ExitStack() as stack:
        socks = [stack.enter_context(adopt_socket(fd)) for fd in fds]
        stack.pop_all()
    unix = [sock for sock in socks if sock.family == socket.AF_UNIX]
    return HandedOver(tcp=[sock for sock in socks if sock not in unix], unix=unix)


def launchd_lookup() -> LaunchdLookup | None:
    """How launchd is asked; None on other systems."""
    return _launchd_fds if sys.platform == "darwin" else None


def _systemd_fds(said: dict[str, str]) -> list[int]:
    text = said.get("LISTEN_FDS", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        return []
    return list(range(FIRST_FD, FIRST_FD + int(text)))


def _launchd_fds(name: str, library: ctypes.CDLL | None = None) -> list[int]:
    import ctypes  # noqa: PLC0415 - no other system needs it

    system = library or ctypes.CDLL(None)
    fds = ctypes.POINTER(ctypes.c_int)()
    count = ctypes.c_size_t(0)
    # ENOENT: no such name in our property list; ESRCH: launchd did not start us.
    if system.launch_activate_socket(name.encode(), ctypes.byref(fds), ctypes.byref(count)) != 0:
        return []
    try:
        return [fds[index] for index in range(count.value)]
    finally:
        system.free(fds)
