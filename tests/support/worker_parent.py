"""A daemon's stand-in that dies: starts a mock worker, brings it into a state, tells its pid, and sleeps."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from tests.support.worker_client import Worker, text_request

from llmvisor_runtimes import limits
from llmvisor_runtimes.protocol import Step, Tick


def bring_into(worker: Worker, failpoint: str) -> None:
    """Return once the worker does what the failpoint says."""
    worker.send(text_request(1, f"[[failpoint: generate=1*token->{failpoint}]]"))
    worker.receive_until(Step)
    silence_seconds = 2 * limits.tick_interval_seconds
    if failpoint in {"stop", "spin(gil)"}:
        with suppress(TimeoutError):
            while True:
                worker.receive(silence_seconds)
    else:
        worker.receive_until(Tick)


if __name__ == "__main__":
    worker = Worker()
    worker.load()
    if sys.argv[1]:
        bring_into(worker, sys.argv[1])
    print(worker.pid, flush=True)
    time.sleep(600)
