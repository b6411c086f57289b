"""Starts scripted workers, and records what is reported of them."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.polling import eventually

from llmvisor.clock import SystemClock
from llmvisor.supervision.workers.orphans import OrphanJournal
from llmvisor.supervision.workers.reaper import Rung, WorkerExit
from llmvisor.supervision.workers.spawn import WorkerSpec
from llmvisor.supervision.workers.worker import Worker, start_worker
from llmvisor_runtimes.protocol import Command, Hello, Report, Text

SCRIPT = Path(__file__).parent / "scripted_worker.py"


def nonce() -> str:
    """A nonce that no other worker has, nor one of tests that run at the same time: a sweep kills by it."""
    return secrets.token_hex(16)


def scripted_python(folder: Path) -> str:
    """An executable that takes an interpreter's arguments, and runs the scripted worker whatever they are."""
    return executable(folder / "python", f'exec "{sys.executable}" "{SCRIPT}" "$@"')


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


class Recorded:
    """A worker, and all that has been reported of it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lines: list[str] = []
        self.exits: list[WorkerExit] = []
        self.reports_after_exit = 0
        self.worker: Worker | None = None
        self.heard: Callable[[Report], None] = lambda _: None
        """What a test does on each report, while it is being reported."""

    @property
    def pid(self) -> int:
        assert self.worker is not None
        return self.worker.pid

    def send(self, command: Command) -> None:
        assert self.worker is not None
        self.worker.send(command)

    def stop(self, rung: Rung, reason: str = "the test asks") -> None:
        assert self.worker is not None
        self.worker.stop(rung, reason)

    def on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.reports_after_exit += len(self.exits)
        self.heard(report)

    async def hello(self) -> Hello:
        """Its first report."""
        first = (await eventually(lambda: self.reports, what="a first report"))[0]
        assert isinstance(first, Hello)
        return first

    async def text(self) -> str:
        """The first text that it said."""
        found = await eventually(lambda: [r for r in self.reports if isinstance(r, Text)], what="a text")
        return found[0].text

    async def exit(self, seconds: float = 10) -> WorkerExit:
        """How it ended; still only once, a moment later."""
        await eventually(lambda: self.exits, seconds, what="the worker's end")
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(self.exits) == 1
        assert self.reports_after_exit == 0
        return self.exits[0]


async def start(
    folder: Path, behaviour: str, *, python: str | None = None, env: dict[str, str] | None = None
) -> Recorded:
    """Start a scripted worker whose journal is in `folder / "run"`. Raises `SpawnFailed`."""
    recorded = Recorded()
    spec = WorkerSpec(
        model="tiny",
        backend="scripted",
        python=python or scripted_python(folder),
        env={"BEHAVIOUR": behaviour, **(env or {})},
    )
    recorded.worker = await start_worker(
        spec,
        on_report=recorded.on_report,
        on_line=recorded.lines.append,
        on_exit=recorded.exits.append,
        journal=OrphanJournal(folder / "run"),
        clock=SystemClock(),
        nonce_source=nonce,
    )
    return recorded
