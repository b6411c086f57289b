"""Upgrades of a test's daemon in place."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from typing import Any, Self

import pytest
from tests.support.daemon import Daemon, Json
from tests.support.polling import eventually_sync


def upgrade_status(daemon: Daemon) -> Json:
    status, body = daemon.control("GET", "/llm/status")
    assert status == 200, body
    return body["upgrade"]


def begin_upgrade(daemon: Daemon, **request: object) -> int:
    """Ask for one, and give how many there were before that succeeded."""
    status, body = daemon.control("POST", "/restart", request)
    assert status == 202, body
    assert body["state"] == "checking"
    return body["completed"]


def ended_upgrade(daemon: Daemon, seconds: float = 30) -> Json:
    """The status, once no upgrade is under way."""
    found: list[Json] = []

    def over() -> bool:
        found[:] = [upgrade_status(daemon)]
        return found[0]["state"] in {"none", "failed"}

    eventually_sync(over, seconds, "the upgrade ends")
    return found[0]


def upgrade(daemon: Daemon, **request: object) -> Json:
    """Upgrade, and give the status that it has succeeded with."""
    return succeeded_upgrade(daemon, begin_upgrade(daemon, **request))


def succeeded_upgrade(daemon: Daemon, before: int) -> Json:
    """The status, once an upgrade has ended, and well; `before` as `begin_upgrade` gave it."""
    status = ended_upgrade(daemon)
    assert status["completed"] == before + 1, (status, daemon.console()[-4000:])
    return status


def await_upgrade_waits(daemon: Daemon, words: str) -> None:
    """Until an upgrade waits for something that is told in these words."""
    eventually_sync(lambda: words in (upgrade_status(daemon)["reason"] or ""), 20, f"the upgrade waits: {words}")


def descriptors(daemon: Daemon) -> Counter[str]:
    """What the daemon has open, by kind or path, once its store and its library are."""
    eventually_sync(lambda: "models" in "".join(_open(daemon)), 10, "the store and the library are open")
    return _open(daemon)


def more_descriptors(daemon: Daemon, before: Counter[str]) -> Counter[str]:
    """What is open that was not before, after a while to close it."""
    with suppress(pytest.fail.Exception):
        eventually_sync(lambda: not descriptors(daemon) - before, 5)
    return descriptors(daemon) - before


def _open(daemon: Daemon) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{daemon.pid}/fd"):
        with suppress(OSError):
            found[os.readlink(f"/proc/{daemon.pid}/fd/{name}").partition(":")[0]] += 1
    return found


def llmctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`llmctl` as people run it."""
    command = [sys.executable, "-m", "llmctl", "--socket", str(daemon.socket_path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class KeptAlive:
    """One connection that asks again and again, and never connects anew."""

    def __init__(self, daemon: Daemon, *, port: int | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port or daemon.port), timeout=60)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, Any]:
        answer = http.client.HTTPResponse(self.socket)
        answer.begin()
        return answer.status, json.loads(answer.read())

    def ask(self, model: str, **fields: object) -> tuple[int, Any]:
        self.send(completion_request(model, **fields))
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def completion_request(model: str, **fields: object) -> bytes:
    """The bytes of a request."""
    body = json.dumps({"model": model, "prompt": "hello", **fields}).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
