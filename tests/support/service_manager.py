"""A service manager in a test: hands over listening sockets as systemd does, starts the daemon for the first client,
and listens to what it is told."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support.daemon import Daemon
from tests.support.polling import eventually_sync

_FD_HIGH = 100
_START = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number, inheritable=True)
    os.close(fd)
pid = sys.argv[2] or str(os.getpid())
os.environ |= {"LISTEN_PID": pid, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join("x" for _ in fds)}
if "WATCHDOG_USEC" in os.environ:
    os.environ.setdefault("WATCHDOG_PID", str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


class NotifySocket:
    """Where the daemon tells how it fares; `messages` are those that came, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.setblocking(False)
        self._messages: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    @property
    def messages(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self._messages.append(self._sock.recv(65536).decode())
        return self._messages

    @property
    def kinds(self) -> list[str]:
        """The first word of each message that is no watchdog's and no status."""
        words = [message.split("=")[0] for message in self.messages]
        return [word for word in words if word not in {"WATCHDOG", "STATUS"}]

    def count(self, message: str) -> int:
        return self.messages.count(message)


class Activated(Daemon):
    """A daemon whose sockets are its manager's: open from the beginning, whether it runs or not."""

    def __init__(
        self, config: Mapping[str, Any], *, env: Mapping[str, str] | None = None, unix: bool = True, tcp: int = 1
    ) -> None:
        super().__init__(config, env=env)
        self.tcp_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(tcp)]
        self.sockets = list(self.tcp_sockets)
        if unix:
            self.socket_path.parent.mkdir(mode=0o700)
            control = socket.socket(socket.AF_UNIX)
            control.bind(str(self.socket_path))
            control.listen()
            self.sockets.append(control)
        self.listen_pid = ""
        """What $LISTEN_PID says; empty = the truth."""
        self.starts = 0

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for sock in self.sockets:
            sock.close()

    def start(self, *arguments: str) -> None:
        """Nothing yet: the first client starts it."""

    @property
    def port(self) -> int:
        return self.tcp_sockets[0].getsockname()[1]

    def spawn(self, *arguments: str) -> None:
        fds = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, _FD_HIGH) for sock in self.sockets]
        command = [sys.executable, "-c", _START, ",".join(map(str, fds)), self.listen_pid]
        try:
            with self.console_file.open("ab") as console:
                self.process = subprocess.Popen(
                    [*command, "-P", "-m", "llmvisor", "--config", str(self.config_file), *arguments],
                    cwd=self.folder,
                    env=self._env,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                    pass_fds=fds,
                )
        finally:
            for fd in fds:
                os.close(fd)
        self.starts += 1

    @property
    def somebody_waits(self) -> bool:
        """Whether a client has connected whom no daemon has accepted."""
        return bool(select.select(self.sockets, [], [], 0)[0])

    def await_client(self, seconds: float = 10) -> None:
        """Do what a manager does: start the daemon once somebody waits."""
        eventually_sync(lambda: self.somebody_waits, seconds, "a client connects")
        self.spawn()


def short_folder() -> Path:
    """The paths of Unix sockets are bounded."""
    return Path(tempfile.mkdtemp(prefix="lv-"))
