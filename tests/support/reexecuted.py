"""A daemon's stand-in: starts a scripted worker, executes itself anew `TURNS` times, adopts the worker each time.

It prints one line for every run (`adopted PID`), asks the worker something in each, and does what `END` says at last:
`close` or `kill` it and print how it ended, or `sleep`, so that the test may kill this process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import uvloop
from tests.support.workers import Recorded, scripted_python, start

from llmvisor.clock import SystemClock
from llmvisor.supervision.handover import WorkerHandover
from llmvisor.supervision.workers.orphans import OrphanJournal
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor.supervision.workers.worker import adopt_worker
from llmvisor_runtimes.protocol import Detokenize

FOLDER, END = Path(sys.argv[1]), sys.argv[2]
TURNS = int(os.environ.get("TURNS", "1"))


async def main() -> None:
    if (given := os.environ.get("GIVEN")) is None:
        recorded = await start(FOLDER, os.environ["SCRIPT"])
        await recorded.hello()
    else:
        recorded = adopt(msgspec.json.decode(given, type=WorkerHandover))
    print("adopted", recorded.pid, flush=True)
    recorded.send(Detokenize(1, [TURNS]))
    print("text", await recorded.text(), flush=True)
    if TURNS:
        execute_again(recorded)
    await end(recorded)


def adopt(given: WorkerHandover) -> Recorded:
    recorded = Recorded()
    recorded.worker = adopt_worker(
        given,
        WorkerSpec(model="tiny", backend="scripted", python=scripted_python(FOLDER)),
        on_report=recorded.on_report,
        on_line=recorded.lines.append,
        on_exit=recorded.exits.append,
        journal=OrphanJournal(FOLDER / "run"),
        clock=SystemClock(),
    )
    return recorded


def execute_again(recorded: Recorded) -> None:
    assert recorded.worker is not None
    given = recorded.worker.hand_over()
    assert given is not None
    for fd in given.fds:
        os.set_inheritable(fd, True)
    environment = {**os.environ, "TURNS": str(TURNS - 1), "GIVEN": msgspec.json.encode(given).decode()}
    os.execve(sys.executable, sys.orig_argv, environment)


async def end(recorded: Recorded) -> None:
    if END == "sleep":
        await asyncio.sleep(600)
    recorded.stop("close" if END == "close" else "kill")
    exit = await recorded.exit()
    print("ended", exit.describe(), flush=True)
    print("lines", *exit.last_lines, flush=True)
    print("descriptors", len(os.listdir("/proc/self/fd")), flush=True)


asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
