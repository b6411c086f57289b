"""How a worker process ends, and that none outlives its daemon."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.support import loud_backend
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync
from tests.support.worker_client import Worker, WorkerEnded, load_of, text_request

from llmvisor_runtimes.framing import encode
from llmvisor_runtimes.malformed import SEEDS
from llmvisor_runtimes.protocol import Close, LoadProgress, Step, Tick

REPOSITORY = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the promise rests on Linux's prctl or /proc")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test here gives back its processes and descriptors."""
    with no_leaks():
        yield


def gone(pid: int) -> bool:
    """Whether a process has ended, be it reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


# ------------------------------------------------------------------------------------------------------ the end, wanted


@pytest.mark.parametrize("hang_up", [False, True])
def test_close_frees_the_model_and_exits_0(hang_up: bool) -> None:
    """Also where the daemon ends the pipe right behind Close."""
    with Worker() as worker:
        worker.load(failpoints="close=1*delay(300)")
        worker.send(Close())
        if hang_up:
            worker.close_commands()
        assert worker.wait() == 0


def test_close_ends_a_load_that_hangs() -> None:
    """Nothing interrupts an engine that loads; the worker exits around it."""
    with Worker() as worker:
        worker.send(load_of(failpoints="load=hang"))
        worker.receive_until(LoadProgress)
        worker.send(Close())
        assert worker.wait() == 0


def test_close_that_hangs_ends_with_its_daemon() -> None:
    """Told to close and then left alone, a worker that hangs in it ends after `close_seconds_max`."""
    program = (
        "import sys; from llmvisor_runtimes import limits; limits.close_seconds_max = 0.3;"
        "from llmvisor_runtimes.process import main; main(sys.argv[1:])"
    )
    with Worker(program=program) as worker:
        worker.load(failpoints="close=hang")
        worker.send(Close())
        worker.close_commands()
        assert worker.wait() == -signal.SIGKILL


def test_sigterm_ends_a_worker_and_sigint_does_not() -> None:
    """Ctrl-C in a terminal is for the daemon alone; SIGTERM has its default effect."""
    with Worker() as worker:
        worker.load()
        os.kill(worker.pid, signal.SIGINT)
        assert worker.generate(text_request(1, "hello"))[1].done is not None
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM


def test_sigabrt_leaves_every_threads_stack_in_the_log() -> None:
    """What a worker hung in is told by its last lines."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*token->hang]]"))
        worker.receive_until(Step)
        for _ in range(2):  # the one on its way may be from before the hang
            worker.receive_until(Tick)
        os.kill(worker.pid, signal.SIGABRT)
        assert worker.wait() == -signal.SIGABRT
        log = worker.log()
    assert "Fatal Python error: Aborted" in log
    for function in ("in _hang", "in _read", "in _tick", "in run"):
        assert function in log


# -------------------------------------------------------------------------------------------------- the end, not wanted


@linux
@pytest.mark.parametrize("state", ["", "spin(gil)", "stop", "spin", "hang"])
def test_no_worker_outlives_its_killed_parent(state: str) -> None:
    """SIGKILL of the parent ends the worker within two seconds, idle, computing, hung, holding the GIL or stopped."""
    argv = [sys.executable, "-m", "tests.support.worker_parent", state]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            assert not gone(pid)
            parent.kill()
            eventually_sync(lambda: gone(pid), 2, "the worker's end")
        finally:
            parent.kill()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_end_of_the_command_pipe_ends_the_worker_and_what_it_started() -> None:
    """Where the kernel tells nothing, the pipe does: the whole process group goes."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*fork->ok")
        worker.generate(text_request(1, "hello"))
        (child,) = children(worker.pid)
        worker.close_commands()
        assert worker.wait() == -signal.SIGKILL
        eventually_sync(lambda: gone(child.pid), 2, "the grandchild's end")


def test_worker_that_nobody_reads_ends() -> None:
    """A closed report pipe is the daemon's end, too."""
    with Worker() as worker:
        worker.load()
        worker.close_reports()
        worker.send(text_request(1, "hello"))
        assert worker.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["http_request", "unknown_tag", "bad_utf8", "deep_nesting", "oversize", "nil"])
def test_garbage_on_the_command_pipe_ends_the_worker(name: str) -> None:
    """A daemon that sends no frames cannot be trusted with the next one."""
    with Worker() as worker:
        worker.load()
        worker.write(SEEDS[name])
        assert worker.wait() == -signal.SIGKILL
        assert "the command pipe is broken" in worker.log()


def test_cut_frame_at_the_end_of_the_command_pipe_ends_the_worker() -> None:
    """The daemon died inside a write."""
    with Worker() as worker:
        worker.load()
        worker.write(SEEDS["cut_body"])
        worker.close_commands()
        assert worker.wait() == -signal.SIGKILL


@pytest.mark.parametrize("what", ["load", "id"])
def test_command_out_of_order_ends_the_worker(what: str) -> None:
    """A second Load, and an id that waits already, are no protocol."""
    with Worker() as worker:
        worker.load()
        slow = text_request(1, "[[failpoint: tokenize=1*delay(5000)]]")
        worker.write(encode(load_of()) if what == "load" else encode(slow) + encode(slow))
        assert worker.wait() == -signal.SIGKILL
        assert "twice" in worker.log()


# ---------------------------------------------------------------------------------------------------------- the process


def test_printing_backend_does_not_corrupt_frames(tmp_path: Path) -> None:
    """A third party's backend, found by its entry point, prints on every way there is: it all goes to the log."""
    with Worker("loud", env=loud_backend.install(tmp_path)) as worker:
        worker.load()
        reply = worker.generate(text_request(1, "hello", max_tokens=50))[1]
        assert len(reply.tokens()) == 50
        worker.send(Close())
        assert worker.wait() == 0
        log = worker.log()
    for line in ("print: stepping", "print: to stderr", "to stdout", "native: to stderr"):
        assert log.count(line) >= 50


def test_unknown_backend_is_permanent_and_names_the_known_ones() -> None:
    """Exit code 78, and a line that says what there is."""
    with Worker("mok") as worker:
        assert worker.wait() == os.EX_CONFIG
        log = worker.log()
    assert "'mok'" in log
    assert "flag, llamacpp, mlx, mock" in log


def test_backend_that_cannot_be_imported_is_permanent(tmp_path: Path) -> None:
    """Its package is registered but not whole."""
    with Worker("absent", env=loud_backend.install(tmp_path)) as worker:
        assert worker.wait() == os.EX_CONFIG
        assert "no_such_module" in worker.log()


@pytest.mark.parametrize("extra", ["--colour", "--open-files-max many", "--read-fd 0", "--read-fd 999"])
def test_wrong_command_line_is_permanent(extra: str) -> None:
    """Frames never use stdin, stdout or stderr, nor a descriptor that is not there."""
    with Worker(extra=extra.split()) as worker:
        assert worker.wait() == os.EX_CONFIG
        assert "usage:" in worker.log()


def test_worker_of_another_parent_exits_at_once() -> None:
    """A daemon that died while its worker started leaves nothing."""
    with Worker(extra=["--parent-pid", "1"]) as worker:
        with pytest.raises(WorkerEnded):
            worker.receive()
        assert worker.wait() == os.EX_SOFTWARE
        assert "parent" in worker.log()


@linux
def test_what_a_worker_starts_does_not_inherit_its_pipes() -> None:
    """Both ends are closed on exec: nothing that an engine starts keeps them open after the worker."""
    with Worker() as worker:
        worker.load()
        for fd in worker.inherited_fds:
            fields = Path(f"/proc/{worker.pid}/fdinfo/{fd}").read_text().split()
            assert int(fields[fields.index("flags:") + 1], 8) & os.O_CLOEXEC


@linux
def test_worker_sets_its_limits() -> None:
    """Open files and core size are limited, and the kernel would rather kill it than the daemon."""
    with Worker(extra=["--open-files-max", "200", "--oom-score-adj", "500"]) as worker:
        worker.load()
        assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)[0] == 200
        assert resource.prlimit(worker.pid, resource.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "500"


def test_host_imports_msgspec_and_the_standard_library_alone() -> None:
    """Whatever else is installed: no import of it, so that a worker starts fast and engines meet nothing."""
    # The interpreter itself imports what environments and editable installs put in their .pth files.
    packages = _imported("llmvisor_runtimes.process, llmvisor_runtimes.mock") - _imported("sys")
    assert packages - sys.stdlib_module_names - {"typing_extensions"} == {"llmvisor_runtimes", "msgspec"}


def _imported(modules: str) -> set[str]:
    """The top packages that a fresh interpreter has after importing these modules."""
    program = f"import sys, {modules}; print(*sys.modules)"
    argv = [sys.executable, "-P", "-c", program]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in result.stdout.split()}
