"""Listening somewhere else, while connections that there are go on: the new socket first, then the old one closes."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from llmvisor import limits
from llmvisor.config.tree import Control, Server
from llmvisor.errors import StartError
from llmvisor.listen import PortFile, open_tcp, open_unix
from llmvisor.listeners import Listener, Listeners
from llmvisor.lock import DaemonLock, remove_stale_socket

Undo = Callable[[], Awaitable[None]]


class Rebinder:
    """Moves the listeners of a daemon that runs. Each move raises `StartError` and changes nothing where it fails."""

    def __init__(self, listeners: Listeners, *, run_dir: Path) -> None:
        self._listeners = listeners
        self._run_dir = run_dir
        self._lock: DaemonLock | None = None
        """Of another folder, where the socket is in one."""

    @property
    def fixed(self) -> list[str]:
        """Settings of sockets that a service manager has opened, and that stay as they are."""
        tcp, unix = self._listeners.tcp, self._listeners.unix
        found = {"server.port": tcp, "control.socket": unix}
        return [path for path, listener in found.items() if listener is not None and listener.handed_over]

    async def move_tcp(self, server: Server) -> None:
        """Listen on this host and port, and say so in this file."""
        listeners = self._listeners
        before, old, runner = listeners.server, listeners.tcp, listeners.runner
        assert old is not None
        assert runner is not None
        listeners.check(server.host)
        new = old
        if (before.host, before.port) != (server.host, server.port) and not old.handed_over:
            # In a thread: a host's name may have to be asked for.
            new = Listener(await asyncio.to_thread(_open_beside, server.host, server.port, old.sock))
        try:
            await new.accept(runner)
            self._write_port_file(server, new)
        except BaseException:
            if new is not old:
                await new.close()
            raise
        listeners.server, listeners.tcp = server, new
        if new is not old:
            await _close_after_overlap(old)

    async def move_unix(self, control: Control) -> None:
        """Listen on this path, for this mode and group."""
        listeners = self._listeners
        before, old, runner = listeners.control, listeners.unix, listeners.runner
        assert old is not None
        assert runner is not None
        if old.handed_over:
            listeners.control = control
            return
        path, old_path = Path(control.socket or ""), Path(before.socket or "")
        if path == old_path:
            _set_mode(path, control)
            listeners.control = control
            return
        lock = self._lock_of(path)
        try:
            remove_stale_socket(path)
            new = Listener(open_unix(path, mode=control.mode_bits, group=control.group))
            await new.accept(runner)
        except BaseException:
            if lock is not None and lock is not self._lock:
                lock.release()
            raise
        listeners.control, listeners.unix = control, new
        await _close_after_overlap(old)
        remove_stale_socket(old_path)
        if lock is not self._lock:
            self.close()
            self._lock = lock

    def close(self) -> None:
        """Let go of the other folder."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _lock_of(self, path: Path) -> DaemonLock | None:
        """The right to be the daemon of another folder; None for our own, which we have."""
        if path.parent == self._run_dir:
            return None
        if self._lock is not None and path.parent == Path(self._listeners.control.socket or "").parent:
            return self._lock
        lock = DaemonLock(path.parent, socket_path=path)
        lock.acquire()
        return lock

    def _write_port_file(self, server: Server, listener: Listener) -> None:
        path = Path(server.port_file) if server.port_file else None
        port_file = PortFile(path, listener.sock.getsockname()[1])
        port_file.write()
        before, self._listeners.port_file = self._listeners.port_file, port_file
        if before is not None and before.path != port_file.path:
            before.remove()


def _open_beside(host: str, port: int, old: socket.socket) -> socket.socket:
    """A socket for another address of the same port may be in conflict with the old one, until that closes."""
    try:
        return open_tcp(host, port)
    except StartError:
        if port != old.getsockname()[1] or not hasattr(socket, "SO_REUSEPORT"):
            raise
    old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        new = open_tcp(host, port, shared=True)
        # Else any program of this user could take its share of the connections.
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        return new
    finally:
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


async def _close_after_overlap(listener: Listener) -> None:
    # Who has just connected to the old one is taken in; only then nobody can any more.
    await asyncio.sleep(limits.listener_overlap_seconds)
    await listener.close()


def _set_mode(path: Path, control: Control) -> None:
    try:
        if control.group is not None:
            os.chown(path, -1, grp.getgrnam(control.group).gr_gid)
        os.chmod(path, control.mode_bits)
    except (OSError, KeyError) as error:
        with contextlib.suppress(OSError):
            os.chmod(path, 0o600)
        reason = f"the group {control.group!r} does not exist" if isinstance(error, KeyError) else error.strerror
        raise StartError(f"cannot change the control socket {path}: {reason}", hint="set control.group") from error
