"""Signals to a worker's group: all of it, also when its leader has gone, and never a stranger with a reused number."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Generator

import psutil
import pytest
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

from llmvisor.supervision.workers import reaper
from llmvisor.supervision.workers.reaper import ProcessGroup


@pytest.fixture(params=["6.9", "5.3", "without pidfd"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel offers: group signals by pidfd, a pidfd for one process, or none."""
    if request.param == "5.3":
        monkeypatch.setattr(reaper, "_PIDFD_SIGNAL_PROCESS_GROUP", 1 << 30)  # refused as unknown
    if request.param == "without pidfd":

        def refuse(_pid: int) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.fixture
def leader() -> Generator[subprocess.Popen[bytes]]:
    """A shell that leads a session, with a child in its group."""
    with no_leaks():
        process = subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True)
        eventually_sync(lambda: psutil.Process(process.pid).children())
        yield process
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_group_signal_reaches_the_child_as_well(leader: subprocess.Popen[bytes]) -> None:
    """One signal ends the leader and what it started."""
    (child,) = psutil.Process(leader.pid).children()
    group = ProcessGroup(leader.pid)
    group.signal_group(signal.SIGKILL)
    assert group.wait(5)
    assert leader.wait(5) == -signal.SIGKILL
    eventually_sync(lambda: gone(child.pid))
    group.close()


def test_signal_reaches_the_leader_alone(leader: subprocess.Popen[bytes]) -> None:
    """The dump that SIGABRT asks for is the worker's own."""
    (child,) = psutil.Process(leader.pid).children()
    group = ProcessGroup(leader.pid)
    group.signal(signal.SIGABRT)
    assert leader.wait(5) == -signal.SIGABRT
    assert not gone(child.pid)
    group.kill_rest()
    eventually_sync(lambda: gone(child.pid))
    group.close()


def test_signals_to_a_group_that_has_gone_are_no_error(leader: subprocess.Popen[bytes]) -> None:
    """Between two looks everything may have ended."""
    group = ProcessGroup(leader.pid)
    group.signal_group(signal.SIGKILL)
    leader.wait(5)
    group.signal(signal.SIGTERM)
    group.kill_rest()
    group.signal_group(signal.SIGTERM)
    assert leader.returncode == -signal.SIGKILL
    group.close()
    group.close()


def test_rest_of_a_group_is_spared_where_the_number_was_given_away(
    leader: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A worker's group has gone. 2. A stranger's group has its number now. Result: the stranger lives."""
    past = subprocess.Popen(["true"], start_new_session=True)
    group = ProcessGroup(past.pid)
    past.wait()
    monkeypatch.setattr(group, "pid", leader.pid)  # as if the number had come round
    group.kill_rest()
    group.signal(0)
    (child,) = psutil.Process(leader.pid).children()
    assert not gone(leader.pid)
    assert not gone(child.pid)
    group.close()


def test_wait_is_bounded(leader: subprocess.Popen[bytes]) -> None:
    """A process that does not end is waited for no longer than asked."""
    group = ProcessGroup(leader.pid)
    assert not group.wait(0.05)
    group.close()
