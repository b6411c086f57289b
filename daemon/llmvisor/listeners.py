"""The sockets that the daemon serves: bound, accepting or pausing, and closed again."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from aiohttp import web

from llmvisor import limits
from llmvisor.activation import HandedOver
from llmvisor.config.tree import Control, Server
from llmvisor.http.connections import FrontServer
from llmvisor.listen import PortFile, address_of, adopt_socket, open_tcp, open_unix
from llmvisor.lock import remove_stale_socket
from llmvisor.upgrade.state import ListenerHandover


class Listener:
    """One listening socket. Connections that come while nothing accepts them wait in its backlog."""

    def __init__(self, sock: socket.socket, *, handed_over: bool = False) -> None:
        self.sock = sock
        self.handed_over = handed_over
        """It is a service manager's: closed here, it still takes connections, which wait for the next start."""
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None

    @property
    def is_tcp(self) -> bool:
        return self.sock.family != socket.AF_UNIX

    async def accept(self, runner: web.AppRunner) -> None:
        if self._site is None:
            # A copy: a loop that stops accepting closes what it was given, and this one goes on listening.
            self._runner, self._site = runner, web.SockSite(runner, self.sock.dup(), backlog=limits.listen_backlog)
            await self._site.start()

    async def pause(self) -> None:
        site, self._site = self._site, None
        # The end of the whole server has stopped it already.
        if site is not None and self._runner is not None and site in self._runner.sites:
            await site.stop()

    async def close(self) -> None:
        """Nobody can connect any more; connections that there are stay."""
        await self.pause()
        self.sock.close()


class Listeners:
    """The TCP port, the control socket, and the file that tells the port.

    `bind` takes the addresses, `accept` begins to serve them, and again after `pause`; `close` ends both. Sockets that
    are open already, inherited from whoever started this process, are given to `bind`.
    """

    def __init__(self, server: Server, control: Control) -> None:
        self.server = server
        self.control = control
        self.runner: web.AppRunner | None = None
        self.port_file: PortFile | None = None
        self.tcp: Listener | None = None
        self.unix: Listener | None = None
        self._more: list[Listener] = []

    def take(self, sockets: HandedOver) -> None:
        """Serve a service manager's sockets: `bind` opens what is not among them. Raises `StartError`."""
        sockets.check(self.server.host)
        tcp, unix = ([Listener(sock, handed_over=True) for sock in socks] for socks in (sockets.tcp, sockets.unix))
        self.tcp, self.unix = (next(iter(listeners), None) for listeners in (tcp, unix))
        self._more = [*tcp[1:], *unix[1:]]

    def check(self, host: str) -> None:
        """Raises `StartError` where a service manager's socket is open to more machines than this host is."""
        HandedOver(tcp=[each.sock for each in self.all if each.handed_over and each.is_tcp]).check(host)

    def bind(self, *, tcp: socket.socket | None = None, unix: socket.socket | None = None) -> None:
        """Take the addresses that were not handed over. Only for the holder of the lock. Raises `StartError`."""
        if self.tcp is None:
            self.tcp = Listener(tcp or open_tcp(self.server.host, self.server.port))
        if self.unix is None:
            control = self.control
            self.unix = Listener(unix or open_unix(self.socket_path, mode=control.mode_bits, group=control.group))

    @property
    def socket_path(self) -> Path:
        if self.unix is not None and self.unix.handed_over:
            return Path(os.fsdecode(self.unix.sock.getsockname()))
        return Path(self.control.socket or "")

    @property
    def unix_handed_over(self) -> bool:
        """Whether the control socket is a service manager's, with a mode of its own."""
        return self.unix is not None and self.unix.handed_over

    @property
    def host(self) -> str:
        """What the TCP port is bound to."""
        assert self.tcp is not None
        return self.tcp.sock.getsockname()[0]

    @property
    def address(self) -> str:
        """`http://127.0.0.1:8000`, as a client reaches it."""
        assert self.tcp is not None
        return address_of(self.tcp.sock)

    @property
    def all(self) -> list[Listener]:
        return [listener for listener in (self.tcp, self.unix, *self._more) if listener is not None]

    async def accept(self, runner: web.AppRunner) -> None:
        """Serve whoever connects, and say on which port. Raises `StartError` where its file cannot be written."""
        self.runner = runner
        for listener in self.all:
            await listener.accept(runner)
        if self.port_file is None and self.tcp is not None:
            path = Path(self.server.port_file) if self.server.port_file else None
            port_file = PortFile(path, self.tcp.sock.getsockname()[1])
            port_file.write()
            self.port_file = port_file

    async def pause(self) -> None:
        """Accept nobody: who connects waits until `accept`."""
        for listener in self.all:
            await listener.pause()

    async def pause_tcp(self) -> None:
        """The same but for the control socket, over which the daemon is managed meanwhile."""
        for listener in self.all:
            if listener is not self.unix:
                await listener.pause()

    def hand_over(self) -> list[ListenerHandover]:
        """Every socket, for another run of this daemon; they stay open here."""
        return [self._hand_over(listener) for listener in self.all]

    def _hand_over(self, listener: Listener) -> ListenerHandover:
        sock, server = listener.sock, self.server
        kind = "tcp" if listener.is_tcp else "unix"
        port = sock.getsockname()[1] if kind == "tcp" else 0
        return ListenerHandover(kind, sock.fileno(), server.host, server.port, listener.handed_over, port)

    def take_over(self, given: list[ListenerHandover]) -> None:
        """Go on with the sockets of an earlier run, as far as the configuration wants the same. Raises `StartError`."""
        for one in given:
            sock = adopt_socket(one.fd)
            listener = Listener(sock, handed_over=one.handed_over)
            if one.kind == "unix" and self.unix is None:
                self.unix = listener
            elif self.tcp is None and one.serves(self.server.host, self.server.port):
                self.tcp = listener
            elif one.handed_over:
                self._more.append(listener)
            else:
                sock.close()

    async def resume(self) -> None:
        """Accept again after `pause`."""
        if self.runner is not None:
            await self.accept(self.runner)

    @property
    def unanswered(self) -> int:
        """Connections whose request is yet to come, or has no answer yet."""
        server = self._server_of_connections()
        return 0 if server is None else server.unanswered

    def let_go_of_idle(self) -> None:
        """End the connections that are kept alive, and others once they are answered."""
        if (server := self._server_of_connections()) is not None:
            server.pre_shutdown()

    @property
    def connections(self) -> FrontServer:
        """Everybody who is connected; once it accepts."""
        server = self._server_of_connections()
        assert server is not None
        return server

    def _server_of_connections(self) -> FrontServer | None:
        server = None if self.runner is None else self.runner.server
        return server if isinstance(server, FrontServer) else None

    async def close_tcp(self) -> None:
        """The daemon ends, and is managed until then: only TCP refuses connections from now on.

        Those to a service manager's sockets wait for the next start, of either kind.
        """
        for listener in self.all:
            if listener is not self.unix or listener.handed_over:
                await listener.close()

    def remove_port_file(self) -> None:
        port_file, self.port_file = self.port_file, None
        if port_file is not None:
            port_file.remove()

    async def close(self) -> None:
        self.remove_port_file()
        for listener in self.all:
            await listener.close()
        if self.unix is not None and not self.unix.handed_over:
            remove_stale_socket(self.socket_path)
