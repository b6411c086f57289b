"""`llmctl config reload`: what came of it, on the screen and in the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import llmctl


def report(**changes: Any) -> dict[str, Any]:
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "cause": "request",
        "outcome": "applied",
        "summary": "replaced light (n_ctx)",
        "models_replaced": ["light"],
        **changes,
    }


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("POST", "/config/reload", report())
        yield daemon


def test_reload_tells_what_changed_and_what_waits(daemon: FakeDaemon) -> None:
    """One line of each."""
    wait = {"path": "storage.dir", "reason": "the store is open"}
    daemon.answer("POST", "/config/reload", report(waits=[wait]))
    ended = llmctl(daemon.socket_path, "config", "reload")
    assert (ended.code, ended.stdout) == (0, "replaced light (n_ctx)\n")
    assert "storage.dir waits for a restart: the store is open" in ended.stderr


def test_reload_as_json_is_the_daemons_answer(daemon: FakeDaemon) -> None:
    """All of it."""
    assert json.loads(llmctl(daemon.socket_path, "config", "reload", "--json").stdout) == report()


def test_reload_that_is_refused_exits_with_one(daemon: FakeDaemon) -> None:
    """The daemon's own words, with file and line."""
    error = {"message": "config.yaml:3: no port", "type": "invalid_request_error", "code": "invalid_config"}
    daemon.answer("POST", "/config/reload", {"error": error}, status=400)
    ended = llmctl(daemon.socket_path, "config", "reload")
    assert (ended.code, ended.stdout) == (1, "")
    assert "config.yaml:3: no port" in ended.stderr


def test_reload_waits_until_models_are_replaced(daemon: FakeDaemon) -> None:
    """Exit code 1 where one could not be, and runs as it did."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(config={"stayed": {"light": "the file is broken"}}))
    ended = llmctl(daemon.socket_path, "config", "reload", "--wait")
    assert ended.code == 1
    assert "light stays as it was: the file is broken" in ended.stderr
    daemon.answer("GET", "/llm/status", fake.daemon_status(config={"stayed": {"other": "of an earlier reload"}}))
    assert llmctl(daemon.socket_path, "config", "reload", "--wait").code == 0


def test_reload_that_takes_too_long_exits_with_five(daemon: FakeDaemon) -> None:
    """And names the models."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(config={"replacing": ["light"]}))
    ended = llmctl(daemon.socket_path, "config", "reload", "--wait", "--timeout", "0.5")
    assert ended.code == 5
    assert "light" in ended.stderr


def test_status_tells_what_is_replaced_and_what_waits(daemon: FakeDaemon) -> None:
    """Beside the reasons, which come from the daemon's health."""
    config = {"replacing": ["light"], "waits": [{"path": "storage.dir", "reason": "it is open"}]}
    daemon.answer("GET", "/llm/status", fake.daemon_status(config=config))
    shown = llmctl(daemon.socket_path, "status").stdout
    assert "replacing light: the new workers are yet to load" in shown
    assert "storage.dir waits for a restart: it is open" in shown
