"""Many starts at once, as from a service manager and a person: one daemon."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.daemon import Daemon, mock_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

STARTS = 10
EXIT_RUNNING = 1


def test_ten_concurrent_starts_yield_one_daemon() -> None:
    """All on one run folder, each with a free port. Result: one serves; each other one names its pid, or says that it
    is just starting, and exits 1; the socket of the one is untouched."""
    with no_leaks():
        daemon = Daemon({"models": {"slow": mock_model()}})
        command = [sys.executable, "-P", "-m", "llmvisor", "--config", str(daemon.config_file)]
        processes = [
            subprocess.Popen(command, cwd=daemon.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(STARTS)
        ]
        try:
            eventually_sync(lambda: sum(process.poll() is not None for process in processes) == STARTS - 1, 60)
            winner = next(process for process in processes if process.poll() is None)
            losers = [process for process in processes if process is not winner]
            assert {process.returncode for process in losers} == {EXIT_RUNNING}
            for process in losers:
                said = process.communicate()[1].decode()
                assert "already running" in said
                assert f"pid {winner.pid}" in said or "just starting" in said
            eventually_sync(daemon.port_file.exists, 20)
            assert daemon.control("GET", "/llm/status")[1]["pid"] == winner.pid
            assert os.listdir(daemon.socket_path.parent).count("control.sock") == 1
        finally:
            for process in processes:
                process.terminate()
                process.communicate(timeout=30)
            daemon.__exit__()
