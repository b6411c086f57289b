"""Worker processes that fail: loads, requests, engines, and all that the mock can be told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support import loud_backend
from tests.support.leaks import no_leaks
from tests.support.worker_client import Worker, WorkerEnded, load_of, text_request

from llmvisor_runtimes.protocol import (
    Close,
    Failed,
    Loaded,
    LoadFailed,
    ProtocolViolation,
    Step,
    Tick,
)

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


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("options", "reason", "permanent"),
    [
        ({"tokken_delay_ms": 5}, "tokken_delay_ms", True),
        ({"failpoints": "load=fly"}, "position 5", True),
        ({"failpoints": "load=error(no room)"}, "no room", False),
    ],
)
def test_failed_load_is_told_and_the_worker_waits_to_be_closed(
    options: dict[str, Any],
    reason: str,
    permanent: bool,
) -> None:
    """LoadFailed says why and whether to try again; ticks go on; Close ends it with 0."""
    with Worker() as worker:
        worker.send(load_of(**options))
        failed = worker.receive_until(LoadFailed)
        assert reason in failed.reason
        assert failed.permanent is permanent
        assert worker.receive_until(Tick).phase == "start"
        worker.send(Close())
        assert worker.wait() == 0


def test_engine_that_raises_crashes_with_its_traceback() -> None:
    """An exception out of `step` is exit code 70, and the last lines say where."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=2*token->panic]]"))
        with pytest.raises(WorkerEnded):
            worker.receive_until(Failed)
        assert worker.wait() == os.EX_SOFTWARE
        assert "RuntimeError: injected panic" in worker.log()


def test_request_that_a_backend_chokes_on_fails_alone(tmp_path: Path) -> None:
    """An unexpected exception for one request is its `internal_error`, with the traceback in the log."""
    with Worker("loud", env=loud_backend.install(tmp_path)) as worker:
        worker.load()
        replies = worker.generate(text_request(1, "break"), text_request(2, "fine", max_tokens=2))
        assert replies[1].failed is not None
        assert replies[1].failed.kind == "internal_error"
        assert "does not like breaks" in replies[1].failed.message
        assert replies[2].done is not None
        worker.send(Close())
        assert worker.wait() == 0
        assert "req-1 failed:\nTraceback" in worker.log()


@pytest.mark.parametrize(("failpoint", "code"), [("exit(3)", 3), ("kill(9)", -9), ("kill(SIGSEGV)", -signal.SIGSEGV)])
def test_worker_dies_as_told_after_exactly_so_many_tokens(failpoint: str, code: int) -> None:
    """The tokens before the fault all come; other requests' too."""
    with Worker() as worker:
        worker.load(tokens_per_step=5)
        worker.send(text_request(1, f"[[failpoint: generate=3*token->{failpoint}]]", n=2))
        tokens = 0
        with suppress(WorkerEnded):
            while True:
                tokens += sum(len(delta.tokens) for delta in worker.receive_until(Step).deltas)
        assert tokens == 3
        assert worker.wait() == code


@pytest.mark.parametrize("failpoint", ["garbage(ffffffff00)", "malformed(unknown_tag)", "malformed(short_delta)"])
def test_wrong_bytes_reach_the_daemon_as_told(failpoint: str) -> None:
    """The daemon's reader finds the tokens before them, then a violation."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, f"[[failpoint: generate=2*token->1*{failpoint}->hang]]"))
        with pytest.raises(ProtocolViolation):
            worker.collect([1])


def test_frames_that_are_wrong_in_meaning_are_sent_as_told() -> None:
    """An id that nobody asked for, a second Loaded, and deltas after a request's end."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=badid->1*dupready->1*afterend->hang]]"))
        assert worker.receive_until(Step).deltas[0].id not in {0, 1}
        assert isinstance(worker.receive_until(Loaded), Loaded)
        steps = [worker.receive_until(Step) for _ in range(4)]
        ended = next(index for index, step in enumerate(steps) if step.done)
        assert ended < 3
        assert any(delta.id == 1 for step in steps[ended + 1 :] for delta in step.deltas)


def test_floods_are_as_large_as_told() -> None:
    """So many megabytes in frames for the request, and in one line of the log."""
    with Worker() as worker:
        worker.load()
        worker.send(text_request(1, "[[failpoint: generate=1*flood(3)->ok]]", max_tokens=1))
        assert 3 * 2**20 <= len(worker.collect([1])[1].text()) < 4 * 2**20
    with Worker() as worker:
        worker.load(failpoints="close=1*logflood(2)")
        worker.send(Close())
        assert worker.wait() == 0
        assert len(max(worker.log().split("\n"), key=len)) == 2 * 2**20


@linux
def test_alloc_takes_the_memory_and_keeps_it() -> None:
    """Resident memory rises by what was told."""
    with Worker() as worker:
        worker.load()
        before = psutil.Process(worker.pid).memory_info().rss
        worker.generate(text_request(1, "[[failpoint: generate=1*alloc(64)->ok]]"))
        assert psutil.Process(worker.pid).memory_info().rss - before > 60 * 2**20


def test_worker_ignores_sigterm_where_told() -> None:
    """Then only SIGKILL is left."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*ignoreterm->ok")
        worker.generate(text_request(1, "hello"))
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.generate(text_request(2, "hello"))[2].done is not None


@linux
def test_held_pipes_stay_open_after_the_worker() -> None:
    """`holdpipe` leaves a process, outside the group, that holds frames and log; `fork` one that holds none."""
    with Worker() as worker:
        worker.load(failpoints="generate=1*fork->1*holdpipe->ok")
        worker.generate(text_request(1, "hello"))
        pipes = {Path(f"/proc/{worker.pid}/fd/{fd}").readlink() for fd in worker.inherited_fds}
        held = {child.pid: pipes & _open_files(child.pid) for child in children(worker.pid)}
        assert sorted(map(len, held.values())) == [0, 2]
        holder = max(held, key=lambda pid: len(held[pid]))
        assert os.getpgid(holder) != worker.pid
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        assert not gone(holder)
        os.kill(holder, signal.SIGKILL)


def _open_files(pid: int) -> set[Path]:
    return {entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()}
