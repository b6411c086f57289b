"""The sockets that the daemon listens on, and the file that tells the port."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from pathlib import Path
from typing import Self

import psutil

from llmvisor import limits
from llmvisor.errors import StartError
from llmvisor.lock import EXIT_CONFIG


def open_tcp(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. `shared` with another one that allows it (SO_REUSEPORT).

    Raises `StartError`: 1 where the port is taken (by whom, if that can be seen), 78 where the host is none of ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # a UnicodeError is a label that is empty or too long
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"server.host {host!r} is no address: {reason}", hint="set server.host", exit_code=EXIT_CONFIG
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(limits.listen_backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is taken{_holder(port)}",
                hint="stop that process, or take another port: `llmvisor --port auto`",
            ) from error
        raise StartError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="set server.host and server.port",
            exit_code=EXIT_CONFIG,
        ) from error
    return sock


def open_unix(path: Path, *, mode: int, group: str | None) -> socket.socket:
    """The listening control socket. Only for the holder of the lock, after `remove_stale_socket`.

    Raises `StartError` (78) for a path that is too long, or a group that does not exist.
    """
    length = len(os.fsencode(path))
    if length > limits.socket_path_bytes_max:
        raise StartError(
            f"the socket path {path} has {length} bytes, and the system allows {limits.socket_path_bytes_max}",
            hint="set control.socket to a shorter path",
            exit_code=EXIT_CONFIG,
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The umask closes the moment between bind and chmod.
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        os.chmod(path, mode)
        sock.listen(limits.listen_backlog)
        sock.setblocking(False)
    except (OSError, KeyError) as error:
        if sock.getsockname():
            path.unlink(missing_ok=True)
        sock.close()
        reason = f"the group {group!r} does not exist" if isinstance(error, KeyError) else error.strerror
        raise StartError(
            f"cannot make the control socket {path}: {reason}",
            hint="set control.socket and control.group",
            exit_code=EXIT_CONFIG,
        ) from error
    finally:
        os.umask(before)
    return sock


def adopt_socket(fd: int) -> socket.socket:
    """A listening TCP or Unix socket that whoever started this process has opened, by its descriptor.

    The descriptor is ours from here on: closed with the socket, and not inherited by workers. Raises `StartError`.
    """
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        flaw = _flaw(sock)
    except OSError as error:
        raise StartError(f"descriptor {fd}, which was handed over, is no socket: {error.strerror}") from error
    if flaw is not None:
        sock.detach()
        raise StartError(f"descriptor {fd}, which was handed over, {flaw}")
    sock.setblocking(False)
    return sock


def _flaw(sock: socket.socket) -> str | None:
    if sock.family not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX} or sock.type != socket.SOCK_STREAM:
        return "is no TCP or Unix stream socket"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is a socket that does not listen"
    return None


def address_of(sock: socket.socket) -> str:
    """`http://127.0.0.1:8000`, as a client reaches it."""
    host, port = sock.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class PortFile:
    """The file with the bound port, there for as long as the daemon accepts connections."""

    def __init__(self, path: Path | None, port: int) -> None:
        self.path = path
        self._content = b"%d\n" % port

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def write(self) -> None:
        """Raises `StartError`."""
        if self.path is not None:
            partial = self.path.with_name(f"{self.path.name}.partial")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(self._content)
                partial.replace(self.path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise StartError(
                    f"cannot write the port file {self.path}: {error.strerror}",
                    hint="set server.port_file, or start in a folder that you may write to",
                    exit_code=EXIT_CONFIG,
                ) from error

    def remove(self) -> None:
        # Another daemon may have written its own port there since.
        if self.path is not None:
            with contextlib.suppress(OSError):
                if self.path.read_bytes() == self._content:
                    self.path.unlink()


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
