"""Drives `nosy_worker`: alone, or as the worker of a real daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon
from tests.support.worker_client import Worker
from tests.support.workers import executable

from llmvisor_runtimes.protocol import ApplyTemplate, ChatMessage, ChatPrompt, Text

SCRIPT = Path(__file__).parent / "nosy_worker.py"
REFUSED = {"PermissionError 1", "PermissionError 13"}
PROGRAM = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
"""Python for `worker_client.Worker(program=…)`."""


def nosy_python(folder: Path) -> str:
    """An executable for `backends.mock.python`: it takes an interpreter's arguments, and runs the nosy worker."""
    # Of `-P -m llmvisor_runtimes NAME --read-fd …` the worker gets what comes after the module.
    script = f'shift 3\nexec "{sys.executable}" -P "{SCRIPT}" "$@"'
    return executable(folder / "nosy-python", script)


def ask(worker: Worker, code: str, *, id: int = 1000) -> str:
    """What a worker says of running this."""
    worker.send(ApplyTemplate(id, ChatPrompt([ChatMessage("user", code)])))
    return worker.receive_until(Text).text


def ask_daemon(daemon: Daemon, model: str, code: str) -> str:
    """The same of a daemon's worker."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": code}]}
    status, answer = daemon.request("POST", "/apply-template", body)
    assert status == 200, answer
    return answer["prompt"]
