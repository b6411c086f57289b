"""A daemon's stand-in that dies: starts a mock worker, brings it into a state, tells its pid, and sleeps."""

from __future__ import annotations

import sys
import time

from tests.support.worker_client import Worker, text_request

from llmvisor_runtimes.protocol import Step

if __name__ == "__main__":
    worker = Worker()
    worker.load()
    if failpoint := sys.argv[1]:
        worker.send(text_request(1, f"[[failpoint: generate=1*token->{failpoint}]]"))
        worker.receive_until(Step)
    print(worker.pid, flush=True)
    time.sleep(600)
