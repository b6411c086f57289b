"""How a worker is started: what it gets, what it does not get, and what a failed start leaves behind."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.support.leaks import no_leaks
from tests.support.polling import eventually
from tests.support.workers import Recorded, executable, nonce, start

from llmvisor.supervision.workers import spawn
from llmvisor.supervision.workers.spawn import SpawnFailed, WorkerSpec, worker_arguments, worker_environment

pytestmark = [pytest.mark.both_loops, pytest.mark.usefixtures("leak_check")]

CANARY = "sk-canary-1f3c"


async def ended(recorded: Recorded) -> None:
    recorded.stop("kill")
    await recorded.exit()


async def test_worker_environment_holds_no_secret_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's environment, as the kernel shows it, holds no key of the daemon and no socket of a service manager."""
    secrets = ("OPENAI_API_KEY", "HF_TOKEN", "LLAMA_API_KEY", "CUDA_SECRET", "NOTIFY_SOCKET", "LISTEN_FDS", "UNKNOWN")
    for name in secrets:
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("GGML_CUDA_FORCE_MMQ", "1")
    recorded = await start(tmp_path, "serve", env={"OMP_WAIT_POLICY": "PASSIVE"})
    await recorded.hello()
    found = psutil.Process(recorded.pid).environ()
    assert CANARY not in str(found)
    assert not set(secrets) & set(found)
    assert found["PATH"] == os.environ["PATH"]
    assert found["GGML_CUDA_FORCE_MMQ"] == "1"
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["PYTHONUNBUFFERED"] == "1"
    await ended(recorded)


async def test_worker_inherits_nothing_but_its_pipes(tmp_path: Path) -> None:
    """Of all that the daemon has open a worker gets /dev/null, two log pipes and two frame pipes."""
    with tempfile.TemporaryFile() as other:
        os.set_inheritable(other.fileno(), True)
        recorded = await start(tmp_path, "descriptors")
        found = dict(line.split(" ", 1) for line in (await recorded.text()).splitlines())
        arguments = psutil.Process(recorded.pid).cmdline()
        frames = {arguments[arguments.index(option) + 1] for option in ("--read-fd", "--write-fd")}
        assert {"0", "1", "2"} | frames <= set(found)
        assert set(found.values()) == {"/dev/null", *(found[fd] for fd in {"1", "2"} | frames)}
        assert all(found[fd].startswith("pipe:") for fd in {"1", "2"} | frames)
        assert len(set(found.values())) == 5
        await ended(recorded)


async def test_worker_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """A Ctrl-C in the daemon's terminal does not reach a worker, and one signal reaches all that it starts."""
    recorded = await start(tmp_path, "serve")
    await recorded.hello()
    assert os.getsid(recorded.pid) == recorded.pid == os.getpgid(recorded.pid)
    await ended(recorded)


async def test_arguments_hold_what_the_worker_is_promised() -> None:
    """The command line is the worker's contract."""
    arguments = worker_arguments(
        WorkerSpec(model="m", backend="mock", python="/bin/python"), nonce="ab", read_fd=5, write_fd=8, parent_pid=1
    )
    assert " ".join(arguments) == (
        "/bin/python -P -m llmvisor_runtimes mock --read-fd 5 --write-fd 8 --parent-pid 1 --nonce ab"
        " --oom-score-adj 500 --open-files-max 1024"
    )


@pytest.mark.parametrize(
    ("name", "let_through"),
    [
        ("LC_ALL", True),
        ("HIP_VISIBLE_DEVICES", True),
        ("ROCR_VISIBLE_DEVICES", True),
        ("XDG_CACHE_HOME", True),
        ("MLX_METAL_JIT", True),
        ("HF_HOME", True),
        ("TMPDIR", True),
        ("HF_TOKEN", False),
        ("CUDA_api_key", False),
        ("LD_PRELOAD", False),
        ("KMP_DUPLICATE_LIB_OK", False),
        ("PYTHONPATH", False),
        ("LISTEN_PID", False),
        ("WATCHDOG_USEC", False),
        ("SSH_AUTH_SOCK", False),
        ("DATABASE_URL", False),
        ("HTTPS_PROXY", False),
    ],
)
async def test_environment_is_an_allowlist(name: str, let_through: bool) -> None:
    """What is not known to be wanted by an engine is kept back."""
    assert (name in worker_environment({name: "x"}, {})) is let_through


async def test_environment_of_the_model_wins() -> None:
    """What a person set for one model is neither filtered nor overridden."""
    assert worker_environment({"PATH": "/a"}, {"PATH": "/b", "MY_TOKEN": "t"})["PATH"] == "/b"
    assert worker_environment({}, {"MY_TOKEN": "t"})["MY_TOKEN"] == "t"


async def test_worker_asks_for_huge_pages_unless_the_model_says_otherwise() -> None:
    """Read by the C library as the process starts; ignored where it does not know it."""
    assert worker_environment({}, {})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert worker_environment({}, {"GLIBC_TUNABLES": ""})["GLIBC_TUNABLES"] == ""


@contextmanager
def descriptors_left(count: int) -> Generator[None]:
    """This process can open exactly so many more: the limit is on numbers, and the lowest free one is given out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{name}")}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, count, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def not_executable(folder: Path) -> str:
    path = folder / "plain"
    path.write_text("no program")
    return str(path)


def broken_interpreter(folder: Path) -> str:
    path = folder / "broken"
    path.write_text("#!/nonexistent/interpreter\n")
    path.chmod(0o755)
    return str(path)


def missing(_: Path) -> str:
    return "/nonexistent/python"


def sound(_: Path) -> str:
    return sys.executable


UNSTARTABLE: dict[str, tuple[Callable[[Path], str], dict[str, str], str]] = {
    "missing": (missing, {}, "ENOENT"),
    "missing interpreter": (broken_interpreter, {}, "ENOENT"),
    "not executable": (not_executable, {}, "EACCES"),
    "a folder": (str, {}, "EACCES"),
    "too long": (sound, {"BIG": "x" * 4_000_000}, "E2BIG"),
    "a null byte": (sound, {"BAD": "a\0b"}, "EINVAL"),
    "a bad name": (sound, {"BA=D": "b"}, "EINVAL"),
}


@pytest.mark.parametrize("kind", UNSTARTABLE)
async def test_spawn_errors_leave_no_fds(tmp_path: Path, kind: str) -> None:
    """A worker that cannot be started is one typed error, not worth a retry, and leaves nothing open."""
    python, env, errno_name = UNSTARTABLE[kind]
    with no_leaks(tmp_path / "run"), pytest.raises(SpawnFailed) as caught:
        await start(tmp_path, "serve", python=python(tmp_path), env=env)
    assert caught.value.errno_name == errno_name
    assert errno_name in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("spare", range(24))
async def test_spawn_without_descriptors_is_retryable_at_whichever_it_runs_out(tmp_path: Path, spare: int) -> None:
    """1. Few descriptors are left. 2. A worker is started. Result: a retryable error or a worker, and none is lost."""
    python = executable(tmp_path / "quick", "exit 0")
    with no_leaks(tmp_path / "run"):
        with descriptors_left(spare):
            (outcome,) = await asyncio.gather(start(tmp_path, "serve", python=python), return_exceptions=True)
        if isinstance(outcome, Recorded):
            assert (await outcome.exit()).code == 0
        else:
            assert isinstance(outcome, SpawnFailed)
            assert (outcome.errno_name, outcome.retryable) == ("EMFILE", True)
    recovered = await start(tmp_path, "serve", python=python)
    assert (await recovered.exit()).code == 0


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.ENFILE])
async def test_spawn_refused_by_the_kernel_is_retryable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full process table or no memory for a fork passes by itself."""

    async def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(spawn.asyncio, "create_subprocess_exec", refuse)
    with no_leaks(tmp_path / "run"), pytest.raises(SpawnFailed) as caught:
        await start(tmp_path, "serve")
    assert caught.value.errno_name == errno.errorcode[number]
    assert caught.value.retryable


async def test_cancelled_spawn_leaves_no_process(tmp_path: Path) -> None:
    """A start that is cancelled while it waits gives everything back."""
    with no_leaks(tmp_path / "run"):
        spec = WorkerSpec(model="m", backend="mock", python=executable(tmp_path / "slow", "exec sleep 1000"))
        task = asyncio.ensure_future(spawn.spawn(spec, nonce=nonce()))
        await asyncio.sleep(0)
        task.cancel()
        spawned = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(spawned, spawn.Spawned):  # the loop had nothing to wait for
            os.killpg(spawned.process.pid, signal.SIGKILL)
            await spawned.process.wait()
            for fd in (spawned.command_fd, spawned.report_fd, *(pipe.fd for pipe in spawned.logs)):
                os.close(fd)
        await eventually(lambda: not psutil.Process().children())
