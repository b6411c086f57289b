"""Sockets that a service manager opens: taken over, left in place, and served again by the next start."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model, stream
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.service_manager import Activated
from tests.support.upgrades import begin_upgrade, ended_upgrade

MODELS = {"slow": mock_model(token_delay_ms=20)}


class Client(threading.Thread):
    """One request in a thread of its own, which waits for as long as it takes."""

    def __init__(self, daemon: Daemon, *, tokens: int = 3) -> None:
        super().__init__()
        self._daemon = daemon
        self._tokens = tokens
        self.answer: tuple[int, object] | BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self._daemon.complete("slow", max_tokens=self._tokens)
        except (OSError, http.client.HTTPException) as error:
            self.answer = error

    @property
    def served(self) -> bool:
        return isinstance(self.answer, tuple) and self.answer[0] == 200


@contextmanager
def client(daemon: Daemon) -> Generator[Client]:
    one = Client(daemon)
    one.start()
    try:
        yield one
    finally:
        one.join(60)


def test_first_client_starts_the_daemon_and_the_next_one_starts_it_again() -> None:
    """1. A client connects to a port that no daemon serves. 2. The manager starts one. 3. It ends for idleness. 4. The
    next client comes. Result: both are served, on the same port, and the manager's sockets are still there."""
    config = {"models": MODELS, "server": {"shutdown_timeout": 0.3}}
    with no_leaks(), Activated(config) as daemon:
        for start in (1, 2, 3):
            with client(daemon) as first:
                daemon.await_client()
            assert first.served, (first.answer, daemon.console())
            assert daemon.starts == start
            assert daemon.wait(20) == 0
            assert "no request" in daemon.console()
            assert daemon.socket_path.is_socket()
        assert f"http://127.0.0.1:{daemon.port}" in daemon.console()


def test_control_socket_starts_the_daemon_too() -> None:
    """`llmctl` is a client like any other; the socket's file is the manager's and stays."""
    with no_leaks(), Activated({"models": MODELS}) as daemon:
        connection = daemon.control_connection()
        connection.request("GET", "/llm/status")
        daemon.await_client()
        answer = connection.getresponse()
        status = json.loads(answer.read())
        connection.close()
        assert status["pid"] == daemon.pid
        assert status["socket"] == str(daemon.socket_path)
        assert status["address"] == f"http://127.0.0.1:{daemon.port}"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.socket_path.is_socket()


def test_socket_activation_fd_survives_restart() -> None:
    """1. SIGTERM while a stream runs. 2. Another client comes. 3. The stream ends whole, the daemon exits. 4. The next
    one is started. Result: the client in between was served, by the next daemon: it saw a pause, not a refusal."""
    with no_leaks(), Activated({"models": MODELS}) as daemon:
        daemon.spawn()
        with stream(daemon, "slow", max_tokens=40) as running:
            running.next_event()
            daemon.signal(signal.SIGTERM)
            eventually_sync(lambda: "stopping" in daemon.console())
            with client(daemon) as between:
                assert list(running.events())[-1] == "[DONE]"
                assert daemon.wait() == 0
                daemon.await_client()
        assert between.served, (between.answer, daemon.console())


def test_nobody_is_lost_while_the_daemon_ends_for_idleness() -> None:
    """Clients that come at every moment around its end are served: by this daemon or the next."""
    config = {"models": MODELS, "server": {"shutdown_timeout": 0.1}}
    with no_leaks(), Activated(config) as daemon:
        clients: list[Client] = []
        begun = time.monotonic()
        while time.monotonic() - begun < 8:
            if not daemon.running and daemon.somebody_waits:
                daemon.spawn()
            if len(clients) < 40 and (not clients or not clients[-1].is_alive()):
                # From before its end until after it: a little later each time.
                time.sleep(0.1 + 0.004 * len(clients)) if clients else None
                clients.append(Client(daemon, tokens=1))
                clients[-1].start()
        eventually_sync(lambda: _start_where_needed(daemon, clients), 30, "every client is answered")
        lost = [one.answer for one in clients if not one.served]
        assert not lost, (lost, daemon.console()[-4000:])
        assert daemon.starts > 1


def _start_where_needed(daemon: Activated, clients: list[Client]) -> bool:
    if not daemon.running and daemon.somebody_waits:
        daemon.spawn()
    return not [one for one in clients if one.is_alive()]


def test_sockets_and_their_variables_are_not_inherited_by_workers() -> None:
    """A worker gets neither the listening sockets nor the variables that tell of them."""
    with no_leaks(), Activated({"models": MODELS}, env={"NOTIFY_SOCKET": "/nowhere"}) as daemon:
        daemon.spawn()
        assert daemon.complete("slow", max_tokens=1)[0] == 200
        worker = psutil.Process(daemon.worker_pid("slow"))
        assert not [name for name in worker.environ() if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
        assert not [name for name in _targets(worker.pid) if name.startswith("socket:")]


def test_sockets_of_another_process_are_left_alone() -> None:
    """$LISTEN_PID names somebody else: the daemon opens its own, and touches no descriptor."""
    with no_leaks(), Activated({"models": MODELS}, unix=False) as daemon:
        daemon.listen_pid = "1"
        daemon.spawn()
        eventually_sync(daemon.port_file.exists, 20)
        assert int(daemon.port_file.read_text()) != daemon.port


def test_more_than_one_tcp_socket_is_served() -> None:
    """IPv4 and IPv6, or a loopback address beside another; the first is the one that is told."""
    with no_leaks(), Activated({"models": MODELS}, unix=False, tcp=2) as daemon:
        daemon.spawn()
        for sock in daemon.tcp_sockets:
            connection = http.client.HTTPConnection("127.0.0.1", sock.getsockname()[1], timeout=30)
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            connection.close()
        assert int(daemon.port_file.read_text()) == daemon.port
        assert daemon.control("GET", "/llm/status")[0] == 200


def test_public_socket_is_refused_where_the_configuration_says_loopback() -> None:
    """A socket unit cannot open to the network what `server.host` keeps to this machine."""
    daemon = Activated({"models": MODELS}, unix=False, tcp=0)
    daemon.sockets.append(socket.create_server(("0.0.0.0", 0)))
    with no_leaks(), daemon:
        daemon.spawn()
        assert daemon.wait() == 78
        assert "open to other machines" in daemon.console()


def test_public_socket_asks_for_its_key_whatever_becomes_of_the_configuration() -> None:
    """1. The manager's socket is open to the network, and a key is asked for. 2. The configuration says loopback now,
    and no key. 3. It is reloaded, and the daemon upgraded. Result: neither is done, and the port asks for its key."""
    server = {"host": "0.0.0.0", "api_keys": ["LV_TEST_KEY"]}
    daemon = Activated({"models": MODELS, "server": server}, env={"LV_TEST_KEY": "sk-" + "k" * 40}, tcp=0)
    daemon.tcp_sockets.append(socket.create_server(("0.0.0.0", 0)))
    daemon.sockets.extend(daemon.tcp_sockets)
    with no_leaks(), daemon:
        daemon.spawn()
        assert daemon.complete("slow", max_tokens=1)[0] == 401
        daemon.reconfigure({"models": MODELS})
        status, body = daemon.control("POST", "/config/reload", {})
        assert (status, body["error"]["code"]) == (500, "reload_failed")
        assert "open to other machines" in body["error"]["message"]
        assert daemon.complete("slow", max_tokens=1)[0] == 401
        begin_upgrade(daemon)
        assert ended_upgrade(daemon)["state"] == "failed"
        assert daemon.complete("slow", max_tokens=1)[0] == 401


def test_sockets_of_the_manager_stay_whatever_the_configuration_says(unused_tcp_port: int) -> None:
    """Another port and another control socket wait for a restart, each told once, and the others are served on."""
    with no_leaks(), Activated({"models": MODELS}) as daemon:
        daemon.spawn()
        assert daemon.control("GET", "/livez")[0] == 200
        moved = {"server": {"port": unused_tcp_port}, "control": {"socket": str(daemon.folder / "else" / "c.sock")}}
        daemon.reconfigure({"models": MODELS, **moved})
        status, report = daemon.control("POST", "/config/reload", {})
        assert status == 200, report
        reason = "the socket is the service manager's"
        waits = {wait["path"]: wait["reason"] for wait in report["waits"]}
        assert (waits, len(report["waits"])) == ({"server.port": reason, "control.socket": reason}, 2)
        assert daemon.complete("slow", max_tokens=1)[0] == 200
        assert not (daemon.folder / "else").exists()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


@pytest.mark.parametrize("kind", ["datagram", "not listening"])
def test_what_cannot_be_served_is_refused(kind: str) -> None:
    """A datagram socket, or one that does not listen: the daemon says so and exits 1."""
    daemon = Activated({"models": MODELS}, unix=False, tcp=0)
    daemon.sockets.append(socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM))
    with no_leaks(), daemon:
        daemon.spawn()
        assert daemon.wait() == 1
        assert "descriptor 3, which was handed over, is" in daemon.console()


def test_port_taken_by_the_manager_is_told_as_taken() -> None:
    """A daemon started by hand beside the manager's socket exits 1, and the socket goes on taking clients."""
    with no_leaks(), Activated({"models": MODELS}, unix=False) as daemon:
        with _by_hand(daemon) as other:
            assert other.wait() == 1
            assert f"port {daemon.port} on 127.0.0.1 is taken" in other.console()
        with client(daemon) as first:
            daemon.await_client()
        assert first.served


def test_control_socket_of_the_manager_is_left_alone_by_a_daemon_started_by_hand() -> None:
    """1. The manager holds the sockets, no daemon runs. 2. Somebody starts one by hand on the same control socket, and
    a port of its own. Result: it says who is in the way and exits 1; the socket still starts the manager's daemon."""
    with no_leaks(), Activated({"models": MODELS}) as daemon:
        with _by_hand(daemon, port="auto", socket_path=str(daemon.socket_path)) as other:
            assert other.wait() == 1
            assert f"another process listens on the control socket {daemon.socket_path}" in other.console()
        assert not daemon.somebody_waits
        connection = daemon.control_connection()
        connection.request("GET", "/llm/status")
        daemon.await_client()
        assert connection.getresponse().status == 200
        connection.close()


@contextmanager
def _by_hand(daemon: Activated, *, port: object = None, socket_path: str | None = None) -> Generator[Daemon]:
    control = {"socket": socket_path} if socket_path else {}
    other = Daemon({"models": MODELS, "server": {"port": port or daemon.port}, "control": control})
    other.spawn()
    try:
        yield other
    finally:
        other.__exit__()


def _targets(pid: int) -> list[str]:
    names: list[str] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    return names
