"""A12: nothing lies in a folder that others write to, and nothing there is trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.nosy import ask_daemon, nosy_python
from tests.support.polling import eventually_sync

from llmvisor.errors import StartError
from llmvisor.lock import secure_directory

CODE = """
import os, tempfile
handle, path = tempfile.mkstemp()
os.write(handle, b"x")
said(path)
"""


def test_nothing_is_put_into_the_shared_folder(tmp_path: Path) -> None:
    """A day's work with a worker that writes temporary files: the system's folder for them stays as it was."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o1777)
    config: Json = {
        "models": {"nosy": mock_model(), "plain": mock_model(sandbox="off")},
        "backends": {"mock": {"python": nosy_python(tmp_path)}},
    }
    with Daemon(config, env={"TMPDIR": str(shared)}) as daemon:
        path = Path(ask_daemon(daemon, "nosy", CODE))
        assert path.is_relative_to(daemon.socket_path.parent)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.exists()
        status, job = daemon.control("POST", "/jobs", {"type": "unload", "params": {"model": "nosy"}})
        assert status in {200, 202}, job
        eventually_sync(lambda: not path.parent.exists(), 10, "the worker's folder goes with it")
        assert list(shared.iterdir()) == []
        daemon.signal(15)
        assert daemon.wait() == 0
    assert list(shared.iterdir()) == []


def test_folder_of_a_killed_worker_goes_too(tmp_path: Path) -> None:
    """Of a worker that was killed at once, and of a daemon that was: then at the next start."""
    config: Json = {"models": {"nosy": mock_model()}, "backends": {"mock": {"python": nosy_python(tmp_path)}}}
    with Daemon(config) as daemon:
        first = Path(ask_daemon(daemon, "nosy", CODE)).parent
        pid = daemon.worker_pid("nosy")
        os.kill(pid, 9)
        eventually_sync(lambda: not first.exists(), 10, "the worker's folder goes with it")
        second = Path(ask_daemon(daemon, "nosy", CODE)).parent
        assert second != first
        daemon.signal(9)
        daemon.wait()
        daemon.port_file.unlink(missing_ok=True)
        daemon.start()
        assert not second.exists()
        assert ask_daemon(daemon, "nosy", "said('well')") == "well"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o755])
def test_run_folder_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Looked at with lstat: a folder that others may enter is none of ours, and a link is refused wherever it leads."""
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StartError) as error:
        secure_directory(folder)
    assert error.value.exit_code == 78
    folder.chmod(0o700)
    secure_directory(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(StartError):
        secure_directory(tmp_path / "link")


def test_configuration_that_all_may_write_is_told() -> None:
    """Whoever may write it may have the daemon start any program: a warning at every start."""
    daemon = Daemon({"models": {"mock": mock_model()}})
    try:
        daemon.config_file.chmod(0o666)
        daemon.start()
        said = "config.yaml: every person of this machine may write to it"
        eventually_sync(lambda: said in daemon.console(), 5, "a warning names the file")
    finally:
        daemon.__exit__(None, None, None)


def test_files_of_the_daemon_are_its_owners(tmp_path: Path) -> None:
    """What it writes others cannot write: the store, the keys, the socket, the log."""
    with Daemon({"models": {"mock": mock_model()}}) as daemon:
        assert daemon.control("POST", "/keys", {"name": "app"})[0] in {200, 201}
        files = [path for path in daemon.folder.rglob("*") if not path.is_symlink()]
        assert len(files) > 5
        assert [path for path in files if path.lstat().st_mode & 0o022 and not path.is_socket()] == []
