"""The lock, with real processes: one daemon for each run folder, whatever was left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from llmvisor.errors import StartError
from llmvisor.lock import EXIT_CONFIG, EXIT_RUNNING, LOCK_FILE, DaemonLock, read_holder, secure_directory

HOLD = """
import sys
from pathlib import Path
from llmvisor.errors import StartError
from llmvisor.lock import DaemonLock

run_dir = Path(sys.argv[1])
sys.stdin.readline()
try:
    with DaemonLock(run_dir, socket_path=run_dir / "control.sock"):
        print("held", flush=True)
        sys.stdin.readline()
except StartError as error:
    print(f"{error.exit_code} {error}", flush=True)
    sys.exit(error.exit_code)
"""


@contextlib.contextmanager
def starters(run_dir: Path, count: int) -> Generator[list[subprocess.Popen[str]]]:
    """Processes that each take the lock when they read a line, and let go of it at the next."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=10)


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_ten_simultaneous_starts_have_one_winner(tmp_path: Path) -> None:
    """1. Ten processes wait. 2. All start at once. Result: one holds the lock, nine exit 1 and name its pid."""
    run_dir = tmp_path / "run"
    with starters(run_dir, 10) as processes:
        for process in processes:
            tell(process)
        lines = {process.pid: line_of(process) for process in processes}
        winners = [pid for pid, line in lines.items() if line == "held"]
        assert len(winners) == 1
        expected = f"1 llmvisor is already running: pid {winners[0]}, socket {run_dir}/control.sock"
        losers = [process for process in processes if process.pid != winners[0]]
        assert all(lines[process.pid].startswith(expected) for process in losers)
        assert [process.wait(timeout=10) for process in losers] == [EXIT_RUNNING] * 9


def test_lock_of_a_killed_daemon_is_taken_over(tmp_path: Path) -> None:
    """1. A daemon is killed with SIGKILL; lock file and socket stay. Result: the next one starts without them."""
    run_dir = tmp_path / "run"
    with starters(run_dir, 1) as (process,):
        tell(process)
        assert line_of(process) == "held"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        leave_socket(run_dir / "control.sock")
        assert read_holder(run_dir) is not None
        with DaemonLock(run_dir, socket_path=run_dir / "control.sock"):
            holder = read_holder(run_dir)
            assert holder is not None
            assert (holder.pid, holder.socket) == (os.getpid(), f"{run_dir}/control.sock")
            assert not (run_dir / "control.sock").exists()


def test_live_socket_is_left_alone(tmp_path: Path) -> None:
    """A start that fails because another daemon runs does not touch that daemon's socket."""
    run_dir = tmp_path / "run"
    with starters(run_dir, 1) as (process,):
        tell(process)
        assert line_of(process) == "held"
        leave_socket(run_dir / "control.sock")
        with pytest.raises(StartError, match=f"pid {process.pid}"):
            DaemonLock(run_dir, socket_path=run_dir / "control.sock").acquire()
        assert (run_dir / "control.sock").is_socket()


def test_lock_is_not_inherited(tmp_path: Path) -> None:
    """A worker that outlives the daemon does not keep the lock."""
    lock = DaemonLock(tmp_path / "run", socket_path=tmp_path / "run" / "control.sock")
    lock.acquire()
    script = "print('runs', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False) as child:
        assert line_of(child) == "runs"
        lock.release()
        with DaemonLock(tmp_path / "run", socket_path=tmp_path / "run" / "control.sock"):
            assert child.poll() is None
        child.communicate("\n", timeout=10)


def test_lock_leaves_no_descriptor(tmp_path: Path) -> None:
    """Neither a lock that was held nor one that was refused leaves a descriptor open."""
    run_dir = tmp_path / "run"
    before = set(os.listdir("/dev/fd"))
    with DaemonLock(run_dir, socket_path=run_dir / "control.sock"), pytest.raises(StartError):
        DaemonLock(run_dir, socket_path=run_dir / "control.sock").acquire()
    (run_dir / "control.sock").write_text("")
    with pytest.raises(StartError):
        DaemonLock(run_dir, socket_path=run_dir / "control.sock").acquire()
    assert set(os.listdir("/dev/fd")) == before


def test_lock_is_let_go_at_the_end(tmp_path: Path) -> None:
    """After `release` nobody stands in the lock file, and the next daemon starts at once."""
    for _ in range(2):
        with DaemonLock(tmp_path / "run", socket_path=tmp_path / "run" / "control.sock"):
            assert read_holder(tmp_path / "run") is not None
        assert read_holder(tmp_path / "run") is None


@pytest.mark.parametrize("content", [b"", b"garbage", b'{"pid": 99999999, "socket": "x"}', b"\xff\xfe"])
def test_leftover_lock_file_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in a lock file that nobody holds, the daemon starts."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    (run_dir / LOCK_FILE).write_bytes(content)
    with DaemonLock(run_dir, socket_path=run_dir / "control.sock"):
        assert json.loads((run_dir / LOCK_FILE).read_bytes())["pid"] == os.getpid()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", ["file", "symlink", "folder"])
def test_socket_path_that_is_no_socket_is_refused(tmp_path: Path, kind: str) -> None:
    """A regular file, a link or a folder where the socket belongs is never removed."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    path = run_dir / "control.sock"
    leave_socket(tmp_path / "real.sock")
    {"file": path.touch, "symlink": lambda: path.symlink_to(tmp_path / "real.sock"), "folder": path.mkdir}[kind]()
    with pytest.raises(StartError, match="is no socket") as caught:
        DaemonLock(run_dir, socket_path=path).acquire()
    assert caught.value.exit_code == EXIT_CONFIG
    assert path.lstat()
    assert (tmp_path / "real.sock").is_socket()


def test_run_dir_is_created_for_us_alone(tmp_path: Path) -> None:
    """A run folder that is absent is made with mode 0700, and so is the lock file with 0600."""
    run_dir = tmp_path / "deep" / "run"
    with DaemonLock(run_dir, socket_path=run_dir / "control.sock"):
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert (run_dir / LOCK_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "refused"), [(0o700, False), (0o710, True), (0o701, True), (0o755, True)])
def test_run_dir_open_to_others_is_refused(tmp_path: Path, mode: int, refused: bool) -> None:
    """Only 0700 will do; the message has the command that repairs it."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(mode)
    if not refused:
        secure_directory(run_dir)
        return
    with pytest.raises(StartError, match="chmod 700") as caught:
        secure_directory(run_dir)
    assert caught.value.exit_code == EXIT_CONFIG


def test_run_dir_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    """A link could lead into somebody else's folder."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name, said in (("link", "a symbolic link"), ("file", "not a folder")):
        with pytest.raises(StartError, match=said) as caught:
            secure_directory(tmp_path / name)
        assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_run_dir_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A folder of another user is not ours to trust."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    os.chown(run_dir, 12345, 12345)
    with pytest.raises(StartError, match="uid 12345") as caught:
        secure_directory(run_dir)
    assert caught.value.exit_code == EXIT_CONFIG


def test_run_dir_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A path below a regular file gives an error with a next step and no traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"control\.socket") as caught:
        secure_directory(tmp_path / "file" / "run")
    assert caught.value.exit_code == EXIT_CONFIG


def test_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A link planted as the lock file is not followed."""
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    (tmp_path / "target").write_text("precious")
    (run_dir / LOCK_FILE).symlink_to(tmp_path / "target")
    with pytest.raises(StartError) as caught:
        DaemonLock(run_dir, socket_path=run_dir / "control.sock").acquire()
    assert caught.value.exit_code == EXIT_CONFIG
    assert (tmp_path / "target").read_text() == "precious"


def leave_socket(path: Path) -> None:
    """A socket file that nobody listens on, as a daemon that was killed leaves it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
