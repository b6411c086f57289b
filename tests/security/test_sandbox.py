"""What a worker cannot do any more, tried by a worker whose model has turned against it; and what it still can."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from tests.support.models import starter_model_path
from tests.support.nosy import PROGRAM, REFUSED, ask
from tests.support.polling import eventually_sync
from tests.support.worker_client import Worker, WorkerEnded, load_of

from llmvisor_runtimes.confinement import landlock, places, seccomp
from llmvisor_runtimes.protocol import Hello, Load, Loaded, ModelOptions

linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
landlocked = pytest.mark.skipif(
    sys.platform != "linux" or landlock.abi_version() == 0, reason="this kernel has no Landlock"
)


def confined(*, read: Sequence[Path] = (), write: Sequence[Path] = (), mode: str = "auto") -> list[str]:
    """Arguments of a worker that is confined to these places."""
    options = (("--read", read), ("--write", write))
    return ["--sandbox", mode, *(part for name, paths in options for path in paths for part in (name, str(path)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("weights")
    (folder / "own").mkdir()
    (folder / "secret").write_text("canary")
    return folder


@pytest.fixture(scope="module")
def worker(folder: Path) -> Generator[Worker]:
    """One worker that has `model` to read and `own` to write in."""
    extra = confined(read=[folder / "model"], write=[folder / "own"])
    env = {"TMPDIR": str(folder / "own"), "CANARY": "environment"}
    with Worker(program=PROGRAM, extra=extra, env=env) as worker:
        worker.load()
        yield worker


# ------------------------------------------------------------------------------------------------------------- files


@landlocked
@pytest.mark.parametrize(
    "code",
    [
        "said(open('{folder}/secret').read())",
        "import os; said(str(os.listdir('{folder}')))",
        "import os; said(str(os.listdir('/')))",
        "import os; said(str(os.listdir(os.path.expanduser('~'))))",
        "said(open('/etc/shadow').read())",
        "open('{folder}/made', 'w')",
        "open('{folder}/secret', 'a')",
        "import os; os.truncate('{folder}/secret', 0)",
        "import os; os.unlink('{folder}/secret')",
        "import os; os.rename('{folder}/own', '{folder}/other')",
        "import os; os.mkdir('{folder}/made')",
        "import os; os.symlink('/etc', '{folder}/made')",
        "open('{folder}/model/weights', 'w')",
        "import os; os.unlink('{folder}/model/weights')",
        "open('/tmp/llmvisor-made', 'w')",
        "open('/usr/made', 'w')",
        "open(__import__('sys').prefix + '/made', 'w')",
        "said(open('/proc/self/root{folder}/secret').read())",
        "import os; os.mknod('{folder}/own/device', 0o600 | 0o020000, os.makedev(1, 3))",
        "import os; os.link('{folder}/secret', '{folder}/own/secret')",
        "import subprocess; subprocess.run(['/bin/cat', '{folder}/secret'], check=True)",
    ],
)
def test_files_of_others_are_out_of_reach(worker: Worker, folder: Path, code: str) -> None:
    """Nothing is read, written, made, moved or removed outside of what is the worker's, by its children neither."""
    said = ask(worker, code.replace("{folder}", str(folder)))
    assert said in {*REFUSED, "OSError 18", "CalledProcessError"}, said
    assert (folder / "secret").read_text() == "canary"
    assert (folder / "model" / "weights").read_text() == "weights"
    assert sorted(path.name for path in folder.iterdir()) == ["model", "own", "secret"]


@linux
@pytest.mark.parametrize(
    "call",
    [
        "chmod('{file}', 0o777)",
        "fchmod(os.open('{file}', os.O_RDONLY), 0o777)",
        "chown('{file}', -1, os.getegid() + 1)",
        "utime('{file}', (1, 1))",
        "utime(os.open('{file}', os.O_RDONLY), (1, 1))",
        "setxattr('{file}', 'user.note', b'x')",
    ],
)
def test_what_is_known_of_a_file_stays(worker: Worker, folder: Path, call: str) -> None:
    """Landlock holds neither mode, owner nor times: a worker could show a person's keys to everybody."""
    file = folder / "model" / "weights"
    before = file.stat()
    ask(worker, f"import os; os.{call.replace('{file}', str(file))}")
    after = file.stat()
    assert [after.st_mode, after.st_gid, after.st_mtime] == [before.st_mode, before.st_gid, before.st_mtime]
    assert os.listxattr(file) == []
    copy = f"import shutil; said(shutil.copy2('{folder}/model/weights', '{folder}/own/copy')[-8:])"
    assert ask(worker, copy) == "own/copy"


@linux
def test_own_files_are_in_reach(worker: Worker, folder: Path) -> None:
    """The model is read; in its own folder the worker makes, moves and removes what it likes."""
    assert ask(worker, f"said(open('{folder}/model/weights').read())") == "weights"
    own = """
import os, tempfile
with tempfile.TemporaryDirectory() as made:
    with open(made + '/a', 'w') as file: file.write('x')
    os.rename(made + '/a', made + '/b')
    said(made)
    said(str(os.listdir(made)))
"""
    made, listed = ask(worker, own).split("\n")
    assert made.startswith(str(folder / "own"))
    assert listed == "['b']"
    assert ask(worker, "import sqlite3, json, wave, ctypes.util, subprocess; said('imported')") == "imported"
    assert ask(worker, "import subprocess; said(str(subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode))") == "3"


def test_model_of_symbolic_links_is_in_reach(tmp_path: Path) -> None:
    """A Hugging Face cache: `snapshots/main/config.json` is a link to `../../blobs/…`; and a model's path is a link."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "digest").write_text("config")
    (blobs / "other").write_text("of another model")
    (snapshot / "config.json").symlink_to("../../blobs/digest")
    (tmp_path / "model").symlink_to(snapshot)
    with Worker(program=PROGRAM, extra=confined(read=[tmp_path / "model"])) as worker:
        worker.load()
        assert ask(worker, f"said(open('{tmp_path}/model/config.json').read())") == "config"
        if landlock.abi_version():
            assert ask(worker, f"open('{blobs}/other')") in REFUSED


def test_parts_of_a_split_model_are_in_reach(tmp_path: Path) -> None:
    """The configuration names the first file alone."""
    parts = [tmp_path / f"m-{part:05d}-of-00003.gguf" for part in (1, 2, 3)]
    assert {str(part) for part in parts} <= set(places.model_places([str(parts[0])]))


# ------------------------------------------------------------------------------------------- network, other processes


@linux
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "import socket; socket.create_connection(('127.0.0.1', {port}), 5)",
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    ],
)
def test_network_is_out_of_reach(worker: Worker, code: str) -> None:
    """No socket of the network at all, so no model calls home; a listener on loopback is not reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = ask(worker, code.replace("{port}", str(listener.getsockname()[1])))
        assert said in {"OSError 97", *REFUSED}, said
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@linux
def test_unix_sockets_are_out_of_reach(worker: Worker, tmp_path: Path) -> None:
    """The daemon's control socket would let a worker manage the daemon. (A GPU's driver needs them.)"""
    if places.devices():
        pytest.skip("there is a GPU, whose driver needs Unix sockets; the daemon refuses its workers by their pids")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        said = ask(worker, f"import socket; socket.socket(socket.AF_UNIX).connect('{tmp_path}/s')")
    assert said in {"OSError 97", *REFUSED}, said
    assert ask(worker, "import socket; a, b = socket.socketpair(); a.send(b'x'); said(str(b.recv(1)))") == "b'x'"


@linux
def test_datagrams_of_a_pair_go_nowhere_else(worker: Worker, tmp_path: Path) -> None:
    """The system's log, or what speaks for a service: a socket of a pair needs no connection to send there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.setblocking(False)
        for kind in ("SOCK_DGRAM", "SOCK_RAW"):
            pair = f"import socket; pair = socket.socketpair(socket.AF_UNIX, socket.{kind}); "
            assert ask(worker, f"{pair}pair[0].sendto(b'x', '{tmp_path}/s')") == "OSError 97"
        with pytest.raises(BlockingIOError):
            listener.recv(1)


@landlocked
def test_other_processes_are_out_of_reach(worker: Worker) -> None:
    """No signal reaches the daemon, its memory and descriptors cannot be read, its limits (of CPU time) not be set."""
    code = f"""
import os, resource
for attempt in (
    lambda: os.kill({os.getpid()}, 0),
    lambda: open('/proc/{os.getpid()}/environ', 'rb').read(),
    lambda: open('/proc/{os.getpid()}/mem', 'rb').read(1),
    lambda: os.readlink('/proc/{os.getpid()}/fd/0'),
    lambda: os.open('/proc/{os.getpid()}/' + 'root' + '/etc/passwd', os.O_RDONLY),
    lambda: resource.prlimit({os.getpid()}, resource.RLIMIT_NPROC),
):
    try:
        said('reached ' + str(attempt())[:50])
    except OSError as error:
        said(type(error).__name__)
"""
    said = ask(worker, code).split("\n")
    expected_signal = "PermissionError" if landlock.abi_version() >= 6 else "reached None"
    assert said == [expected_signal, *["PermissionError"] * 5]


@linux
@pytest.mark.parametrize("name", ["ptrace", "bpf", "unshare", "mount", "keyctl", "io_uring_setup", "userfaultfd"])
def test_calls_that_no_engine_needs_are_refused(worker: Worker, name: str) -> None:
    """With io_uring a socket could be had without socket(2), with a user namespace new powers."""
    machine = os.uname().machine
    number = seccomp.MACHINES[machine].refused[name]
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
said(f"{{libc.syscall({number}, 0, 0, 0, 0, 0)}} {{ctypes.get_errno()}}")
"""
    assert ask(worker, code) == "-1 1"


@linux
def test_no_privilege_is_gained(worker: Worker) -> None:
    """Every thread, those of before and after, runs with no_new_privs and the filter; root's powers are gone."""
    code = """
import os
for task in os.listdir('/proc/self/task'):
    with open(f'/proc/self/task/{task}/status') as status:
        found = dict(line.split(':', 1) for line in status)
    said(' '.join(found[name].strip() for name in ('NoNewPrivs', 'Seccomp', 'CapEff')))
"""
    for line in ask(worker, code).split("\n"):
        privileges, filtered, capabilities = line.split()
        assert (privileges, filtered) == ("1", "2")
        assert int(capabilities, 16) & ~(1 << 1 | 1 << 2 | 1 << 14 | 1 << 23) == 0


@linux
def test_processes_are_bounded(worker: Worker) -> None:
    """A fork bomb has an end; root is not bound by it, and has the service manager's `TasksMax`."""
    line = next(line for line in Path(f"/proc/{worker.pid}/limits").read_text().splitlines() if "processes" in line)
    assert line.split()[2].isdigit(), line


@linux
@pytest.mark.parametrize("call", ["os.setsid()", "os.setpgid(0, 0)", "os.setpgrp()"])
def test_children_stay_in_the_group(worker: Worker, call: str) -> None:
    """Whatever a worker starts ends with its group: nothing leaves it."""
    code = f"""
import os
child = os.fork()
if child == 0:
    try:
        {call}
    except PermissionError:
        os._exit(13)
    os._exit(0)
said(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
    assert ask(worker, code) == "13"


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_ordinary_user_has_the_same_sandbox() -> None:
    """Nothing of it needs a privilege: the same measures hold without any."""
    command = ["unshare", "-U", sys.executable, "-P", "-m", "llmvisor_runtimes.confinement"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0 and "unshare" in ended.stderr:
        pytest.skip(f"no user namespace here: {ended.stderr.strip()}")
    alone = subprocess.run(command[2:], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == json.loads(alone.stdout)


# --------------------------------------------------------------------------------------------------- what is said of it


@linux
def test_hello_says_what_is_in_force(tmp_path: Path) -> None:
    """Nothing is asked for: nothing is said. Otherwise each measure is in force, or missing with the reason."""
    with Worker() as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert hello.confined is None
    with Worker(extra=confined(write=[tmp_path / "made"])) as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert hello.confined is not None
        assert {"no_new_privs", "capabilities"} <= set(hello.confined.in_force)
        said = " ".join((*hello.confined.in_force, *hello.confined.missing))
        assert all(word in said for word in ("landlock", "seccomp"))
        assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


NO_LANDLOCK = """
import sys, runpy
from llmvisor_runtimes.confinement import landlock
landlock.abi_version = lambda: 0
sys.argv[0] = "llmvisor_runtimes"
from llmvisor_runtimes import process
sys.exit(process.main(sys.argv[1:]))
"""


@linux
def test_kernel_without_landlock_is_said_and_does_without(tmp_path: Path) -> None:
    """`auto` loads the model all the same, under the rest."""
    with Worker(program=NO_LANDLOCK, extra=confined()) as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert hello.confined is not None
        assert [line.partition(":")[0] for line in hello.confined.missing] == ["landlock"]
        assert "seccomp" in hello.confined.in_force
        worker.send(load_of())
        assert worker.receive_until(Loaded)


@landlocked
def test_kernel_whose_landlock_holds_no_signals_says_so() -> None:
    """Up to Linux 6.11 a worker could end its daemon: that is told, and not what `required` asks for."""
    program = NO_LANDLOCK.replace("lambda: 0", "lambda: 5")
    with Worker(program=program, extra=confined()) as worker:
        hello = worker.receive()
        assert isinstance(hello, Hello)
        assert hello.confined is not None
        assert [line.partition(":")[0] for line in hello.confined.missing] == ["signals"]
    with Worker(program=program, extra=confined(mode="required")) as worker:
        assert worker.wait() == os.EX_CONFIG
        assert "signals: Landlock 5 does not hold them" in worker.log()


@linux
def test_required_sandbox_that_cannot_be_had_loads_nothing() -> None:
    """`required`: the worker ends for good before it reads anything, and says why."""
    with Worker(program=NO_LANDLOCK, extra=confined(mode="required")) as worker:
        with pytest.raises(WorkerEnded):
            worker.receive()
        assert worker.wait() == os.EX_CONFIG
        assert "the sandbox is required" in worker.log()
        assert "landlock" in worker.log()


@linux
def test_confined_worker_still_dies_with_its_parent(tmp_path: Path) -> None:
    """Giving up capabilities would clear the parent-death signal, were any gained by it."""
    script = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.support.worker_client import Worker
worker = Worker(extra=["--sandbox", "auto"])
worker.load()
print(worker.pid, flush=True)
os.kill(worker.pid, {int(signal.SIGSTOP)})
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        eventually_sync(lambda: not Path(f"/proc/{pid}").exists(), 10, "the worker dies")


# ---------------------------------------------------------------------------------------------------- engines, as ever


@linux
def test_llamacpp_loads_and_keeps_its_state_in_the_sandbox(tmp_path: Path) -> None:
    """The real engine, its model and its state file."""
    model = starter_model_path()
    with Worker("llamacpp", extra=confined(read=[model], write=[tmp_path / "state"])) as worker:
        assert isinstance(worker.receive(), Hello)
        options = ModelOptions(n_ctx=512, n_threads=1, state_dir=str(tmp_path / "state"))
        worker.send(Load("m", str(model), options))
        assert worker.receive_until(Loaded, 60).info.architecture == "llama"
