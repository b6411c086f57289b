"""From the start of the process to accepting connections, without a model ÷ importing aiohttp, uvloop and msgspec."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.figures import Bound, Figure, Options, alone, command, compare
from benchmarks.harness import daemon

STATUS_RUNS = 10
STATUS_MS_MAX = 150.0
IMPORTS = "import aiohttp, uvloop, msgspec, os; os.write(1, b'x')"


async def measure(options: Options) -> list[Figure]:
    # Both once for nothing: bytecode is written and the files are in the page cache.
    _daemon_ms()
    _imports_ms()
    rounds = [(_daemon_ms(), _imports_ms()) for _ in range(options.rounds)]
    figure = compare(
        "start until connections are accepted, no model",
        "ms",
        rounds,
        peer_name="importing aiohttp, uvloop and msgspec",
        target=Bound("ratio", "≤", 1.6),
    )
    return [figure, _llmctl()]


def _llmctl() -> Figure:
    """What a person waits for `llmctl status`, of a daemon with one model."""
    with daemon({"light": {"backend": "mock"}}) as server:
        status = [sys.executable, "-m", "llmctl", "--socket", server.socket, "status"]
        times: list[float] = []
        for _ in range(STATUS_RUNS + 1):
            began = time.perf_counter()
            subprocess.run(status, stdout=subprocess.DEVNULL, check=True)
            times.append((time.perf_counter() - began) * 1000)
    return alone("llmctl status", "ms", times[1:], target=Bound("ours", "≤", STATUS_MS_MAX))


def _daemon_ms() -> float:
    with daemon({"light": {"backend": "mock"}}, wait_ready=False) as server:
        return server.start_seconds * 1000


def _imports_ms() -> float:
    environ = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME"}}
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", IMPORTS], stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    command(measure, __doc__)
