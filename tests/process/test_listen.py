"""The sockets that the daemon listens on, and the file that tells the port."""

from __future__ import annotations

import grp
import os
import socket
import stat
import tempfile
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from llmvisor.errors import StartError
from llmvisor.listen import PortFile, address_of, open_tcp, open_unix


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def folder() -> Generator[Path]:
    """Short: the paths of Unix sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="lv-") as name:
        yield Path(name)


# ------------------------------------------------------------------------------------------------------------- TCP


def test_port_zero_takes_a_free_one_that_accepts() -> None:
    """What `--port auto` asks for, and the address that clients are told."""
    with closing(open_tcp("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert port > 0
        assert address_of(listening) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), 5).close()


def test_taken_port_names_its_holder_and_exits_1() -> None:
    """Starting again later may help: no configuration is wrong."""
    with closing(open_tcp("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} on 127.0.0.1 is taken by pid {os.getpid()}") as refusal:
            open_tcp("127.0.0.1", port)
    assert refusal.value.exit_code == 1


def test_port_of_a_daemon_that_just_ended_can_be_taken() -> None:
    """Connections in TIME_WAIT do not hold up a restart."""
    with closing(open_tcp("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5):
            first.setblocking(True)
            first.accept()[0].close()
    with closing(open_tcp("127.0.0.1", port)) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b", "x" * 64])
def test_host_that_is_none_of_ours_exits_78(host: str) -> None:
    """An address of someone else, a name of nobody, and what is no name at all."""
    with pytest.raises(StartError) as refusal:
        open_tcp(host, 0)
    assert refusal.value.exit_code == 78


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize(("host", "address"), [("::1", "http://[::1]:"), ("::", "http://127.0.0.1:")])
def test_ipv6_address_is_told_as_a_client_writes_it(host: str, address: str) -> None:
    """In brackets; of all addresses the loopback one."""
    with closing(open_tcp(host, 0)) as listening:
        assert address_of(listening) == f"{address}{listening.getsockname()[1]}"
        socket.create_connection(("::1", listening.getsockname()[1]), 5).close()


# ------------------------------------------------------------------------------------------------------------ Unix


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_socket_has_its_mode_and_group(folder: Path, mode: int) -> None:
    """Whatever the umask says, and the umask is as it was."""
    path = folder / "control.sock"
    before = os.umask(0o002)
    try:
        group = grp.getgrgid(os.getgid()).gr_name
        with closing(open_unix(path, mode=mode, group=group)):
            status = path.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, os.getgid())
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)


def test_unknown_group_is_refused_and_leaves_no_socket(folder: Path) -> None:
    """The socket was made already when the group was looked up, and stayed."""
    path = folder / "control.sock"
    with pytest.raises(StartError, match="group 'nobody-has-this' does not exist") as refusal:
        open_unix(path, mode=0o600, group="nobody-has-this")
    assert refusal.value.exit_code == 78
    assert not path.exists()


def test_what_is_in_the_way_of_the_socket_stays(folder: Path) -> None:
    """It is not ours to remove."""
    path = folder / "control.sock"
    path.write_text("mine")
    with pytest.raises(StartError):
        open_unix(path, mode=0o600, group=None)
    assert path.read_text() == "mine"


def test_socket_path_is_bounded(folder: Path) -> None:
    """At the bound it works, one byte more is refused."""
    room = 103 - len(os.fsencode(folder)) - 1
    open_unix(folder / ("x" * room), mode=0o600, group=None).close()
    with pytest.raises(StartError, match="104 bytes"):
        open_unix(folder / ("x" * (room + 1)), mode=0o600, group=None)


# ------------------------------------------------------------------------------------------------------- port file


def test_port_file_is_there_for_as_long_as_the_daemon(folder: Path) -> None:
    """Whole from the first moment, and nothing beside it."""
    path = folder / "new" / ".port"
    with PortFile(path, 8123):
        assert path.read_text() == "8123\n"
        assert os.listdir(path.parent) == [".port"]
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("content", [b"9000\n", b"\xff\xfe", b""])
def test_port_file_of_another_stays(folder: Path, content: bytes) -> None:
    """Another daemon has written its own there since; bytes that are no text had ended ours with a bug."""
    path = folder / ".port"
    with PortFile(path, 8123):
        path.write_bytes(content)
    assert path.read_bytes() == content


def test_port_file_that_is_gone_is_no_error(folder: Path) -> None:
    """Somebody tidied up."""
    path = folder / ".port"
    with PortFile(path, 8123):
        path.unlink()
    assert os.listdir(folder) == []


def test_port_file_that_cannot_be_written_exits_78_and_leaves_nothing(folder: Path) -> None:
    """Here a folder is in its place."""
    path = folder / ".port"
    path.mkdir()
    with pytest.raises(StartError, match="port file") as refusal, PortFile(path, 8123):
        pass
    assert refusal.value.exit_code == 78
    assert os.listdir(folder) == [".port"]


def test_no_port_file_is_written_where_none_is_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`port_file: null`."""
    monkeypatch.chdir(folder)
    with PortFile(None, 8123):
        assert os.listdir(folder) == []
