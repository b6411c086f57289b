"""What the daemon's own process takes of the system, seen from outside."""

from __future__ import annotations

import resource

import psutil
import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.leaks import no_leaks

from llmvisor import limits
from llmvisor.process import connections_max


def test_workers_are_what_the_kernel_ends_first() -> None:
    """The daemon's score is not above what it had, and a worker's is high."""
    with no_leaks(), Daemon({"models": {"mock": mock_model()}}) as daemon:
        assert daemon.complete("mock", max_tokens=1)[0] == 200
        daemon_score = _score(daemon.pid)
        assert daemon_score in {limits.daemon_oom_score_adj, _score(psutil.Process().pid)}
        assert _score(daemon.worker_pid("mock")) == limits.worker_oom_score_adj > daemon_score


@pytest.mark.parametrize(("open_files", "connections"), [(64, 32), (1024, 512), (8192, limits.connections_max)])
def test_connections_leave_descriptors_for_the_rest(
    open_files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few descriptors there are, some are kept for workers and files."""

    def getrlimit(_: int) -> tuple[int, int]:
        return open_files, open_files

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    assert connections_max() == connections


def _score(pid: int) -> int:
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as file:
        return int(file.read())
