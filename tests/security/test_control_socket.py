"""The control socket under abuse: garbage, floods, half messages, other users, and the daemon's own workers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.http_front import served
from tests.support.nosy import ask_daemon, nosy_python
from tests.support.polling import eventually_sync

from llmvisor import limits
from llmvisor.http.peers import Peer, peer_of
from llmvisor.http.settings import HttpSettings

NOBODY = 65534


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        yield daemon


def connected(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(daemon.socket_path))  # waits for room in the backlog
    connection.settimeout(20)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts: list[bytes] = []
    try:
        while data := connection.recv(65536):
            parts.append(data)
    except ConnectionError:
        pass
    return b"".join(parts)


def is_well(daemon: Daemon) -> bool:
    return daemon.control("GET", "/llm/status")[0] == 200


def memory(daemon: Daemon) -> int:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"\xff\xfe garbage \r\n\r\n",
        b"GET\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b'{"jsonrpc": "2.0", "method": "shutdown"}\n\n',
        b"GET /llm/status HTTP/9.9\r\n\r\n",
        b"GET /llm/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /shutdown HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /shutdown HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_garbage_is_refused_and_the_next_one_served(daemon: Daemon, data: bytes) -> None:
    """What is no request is answered by 400, or by nothing, and the connection ends."""
    with connected(daemon) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        said = answer(connection)
    assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), said[:100]
    assert is_well(daemon)


def test_line_of_ten_megabytes_is_refused_without_being_kept(daemon: Daemon) -> None:
    """A request line, or a header, without an end: an error after the first 16 kB."""
    before = memory(daemon)
    for head in (b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "):
        with connected(daemon) as connection:
            sent = 0
            try:
                connection.sendall(head)
                while sent < 10_000_000:
                    sent += connection.send(b"a" * 65536)
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert sent < 10_000_000 or answer(connection)[:12] == b"HTTP/1.1 400"
    assert memory(daemon) - before < 8_000_000
    assert is_well(daemon)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", b""),
        (b"GET /llm/status HTTP/1.1\r\nHost:", b""),
        (
            b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
            b"HTTP/1.1 408",
        ),
    ],
)
async def test_half_a_message_is_closed_at_the_deadline(tmp_path: Path, data: bytes, said: bytes) -> None:
    """Nothing at all, headers that do not end, and a body that does not come; others are served meanwhile."""
    short = HttpSettings(
        keepalive_seconds=0.3, body_seconds_max=0.3, body_bytes_per_second_min=10**9, handler_cleanup_seconds=0.2
    )
    async with served(tmp_path, settings=short) as front:
        reader, writer = await asyncio.open_unix_connection(front.socket_path)
        writer.write(data)
        assert (await front.manage("GET", "/llm/status")).status == 200
        assert (await asyncio.wait_for(reader.read(), 10))[:12] == said
        writer.close()
        await writer.wait_closed()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed it."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_thousand_connections_are_bounded_and_let_go(daemon: Daemon) -> None:
    """Past the bound they are closed at once; TCP is served all along, and the socket again when they have gone."""
    open_files = Path(f"/proc/{daemon.pid}/fd")
    before = len(list(open_files.iterdir()))
    with ExitStack() as held:
        connections = [held.enter_context(connected(daemon)) for _ in range(1000)]
        past = 1000 - limits.control_connections_max
        eventually_sync(lambda: sum(map(is_closed, connections)) >= past, 20, "those past the bound are closed")
        assert len(list(open_files.iterdir())) - before <= limits.control_connections_max + 10
        assert daemon.complete("mock", max_tokens=1)[0] == 200
    eventually_sync(lambda: is_well(daemon), 10, "the socket is served again")
    eventually_sync(lambda: len(list(open_files.iterdir())) <= before + 10, 10, "its descriptors are given back")


# -------------------------------------------------------------------------------------------------------- who it is


def test_peer_is_who_the_kernel_says(daemon: Daemon) -> None:
    """Process and user of whoever connected."""
    here, there = socket.socketpair()
    with here, there:
        assert peer_of(here) == Peer(os.getpid(), os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_user_is_refused_whatever_the_file_modes() -> None:
    """Somebody opened the folder and the socket to all: the daemon still serves its own user alone."""
    client = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(10)
connection.connect(sys.argv[1])
try:
    connection.sendall(b"GET /llm/status HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
    sys.stdout.buffer.write(connection.recv(100))
except ConnectionError:
    pass
"""
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        command = [sys.executable, "-c", client, str(daemon.socket_path)]
        closed = subprocess.run(command, capture_output=True, check=False)
        assert b"PermissionError" in closed.stderr
        for path, mode in ((daemon.folder, 0o755), (daemon.socket_path.parent, 0o755), (daemon.socket_path, 0o666)):
            path.chmod(mode)
        opened = subprocess.run(command, capture_output=True, check=False)
        assert (opened.returncode, opened.stdout) == (0, b""), opened
        eventually_sync(lambda: "it belongs to uid 65534" in daemon.console(), 5, "the refusal is logged")
        assert is_well(daemon)


@pytest.mark.parametrize("detached", [False, True])
def test_worker_that_reaches_the_socket_is_refused(tmp_path: Path, *, detached: bool) -> None:
    """Without the sandbox, as beside a GPU: the daemon knows its workers, and what they start elsewhere."""
    config = {
        "models": {"nosy": mock_model(sandbox="off")},
        "backends": {"mock": {"python": nosy_python(tmp_path)}},
    }
    with Daemon(config) as daemon:
        attack = f"""
import socket
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(10)
connection.connect({str(daemon.socket_path)!r})
try:
    connection.sendall(b"POST /shutdown HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 0\\r\\n\\r\\n")
    data = connection.recv(100)
except ConnectionError:
    data = b""
"""
        code = f"{attack}\nsaid('answered ' + repr(data))"
        if detached:
            inner = f"{attack}\nprint('answered', repr(data))"
            code = f"import subprocess, sys\nsaid(subprocess.run([sys.executable, '-c', {inner!r}],"
            code += " start_new_session=True, capture_output=True, text=True).stdout.strip())"
        assert ask_daemon(daemon, "nosy", code) == "answered b''"
        eventually_sync(lambda: "to the control socket is refused" in daemon.console(), 5, "the refusal is logged")
        assert is_well(daemon)
