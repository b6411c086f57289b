"""What models, registries and workers are called or say never steers the terminal, whichever command prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import TerminalRun, llmctl

TITLE = "\x1b]0;owned\x07"
CLEAR = "\x9b2J"
BACKWARDS = "\u202e"
HOSTILE = f"{TITLE}{CLEAR}{BACKWARDS}\x7fname"
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_COLOURS = re.compile("\x1b\\[(?:0|1|2|3[1-6])m")
FIXED = {"state", "type", "unit", "kind", "level", "layer", "registry", "created_at", "started_at", "ended_at"}
"""What the API has a list of words for, or a form."""

COMMANDS = (
    ("status",),
    ("status", "light"),
    ("models",),
    ("show", "light"),
    ("backends",),
    ("logs",),
    ("events",),
    ("jobs",),
    ("jobs", "show", "job_01"),
    ("jobs", "watch", "job_01"),
    ("jobs", "watch", "job_01", "job_02"),
    ("jobs", "cancel", "job_01"),
    ("install", "starter"),
    ("update", "light"),
    ("delete", "light", "--yes"),
    ("load", "light"),
    ("search", "qwen"),
    ("usage",),
    ("config", "show"),
    ("config", "show", "--origin"),
    ("bench", "light", "-c", "1"),
    ("health",),
    ("doctor",),
)


def spoilt(value: Any, name: str = "") -> Any:
    """The same object with control characters in every text that is free."""
    if isinstance(value, dict):
        return {key: spoilt(item, key) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [spoilt(item, name) for item in cast("list[Any]", value)]
    return f"{HOSTILE}{value}" if isinstance(value, str) and name not in FIXED else value


def kept(value: dict[str, Any], **fixed: Any) -> dict[str, Any]:
    return {**spoilt(value), **fixed}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        told = {"error": "why", "hint": "do", "result": "done", "stage": "here"}
        failed = kept(fake.ended_job("failed", **told), id="job_01")
        second = kept(fake.ended_job(**told), id="job_02")
        model = spoilt(fake.model(source="hf:org/repo", revision="4f2a", error="broken"))
        runtime = fake.runtime(state="error", error="why", last_lines=["one", "two"])
        status = spoilt(fake.daemon_status(runtimes=[runtime], reasons=["so"], jobs=[fake.job(**told)]))
        record = {"time": "no time", "level": "info", "module": "m", "message": "x", "model": "y", "request_id": "z"}
        events: list[dict[str, Any]] = [
            {"time": "no time", "kind": "runtime", "runtime": runtime},
            {"time": fake.START, "kind": "job", "job": fake.job(error="why")},
            {"time": fake.START, "kind": "daemon", "message": "hello"},
        ]
        for method, path, value in (
            ("GET", "/llm/status", status),
            ("GET", "/llm/runtimes/light", spoilt(runtime)),
            ("GET", "/llm/models/light", model),
            ("GET", "/jobs/job_01", failed),
            ("GET", "/jobs/job_02", second),
            ("POST", "/jobs", second),
            ("POST", "/jobs/job_01/cancel", failed),
            ("GET", "/health", spoilt({"status": "degraded", "timestamp": fake.START, "reasons": ["so"]})),
        ):
            daemon.answer(method, path, value)
        backend = {"name": "mock", "python": "/p", "installed": True, "usable": False, "error": "why", "hint": "do"}
        daemon.items("/llm/backends", [spoilt(backend)])
        daemon.items("/llm/models", [model])
        daemon.items("/logs", [{**spoilt(record), "fields": {HOSTILE: HOSTILE}}])
        daemon.items("/jobs", [failed, second])
        daemon.items("/usage", [spoilt(fake.usage_row())])
        daemon.items("/llm/registry/models", [spoilt(fake.registry_model())])
        daemon.items("/config", [spoilt({"path": "models.x", "value": "y", "layer": "file", "origin": "x"})])
        daemon.stream("GET", "/events", [(event["kind"], spoilt(event)) for event in events])
        error = {"message": "why", "type": "server_error", "code": "internal_error", "param": None}
        daemon.stream("POST", "/v1/completions", [(None, {"error": spoilt(error)})])
        yield daemon


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_control_character_is_printed_in_a_pipe(daemon: FakeDaemon, arguments: tuple[str, ...]) -> None:
    """What is read later with `cat` is as dangerous as what appears at once."""
    ended = llmctl(daemon.socket_path, *arguments)
    assert "name" in ended.stdout + ended.stderr
    assert not _STEERING.findall(ended.stdout + ended.stderr)


@pytest.mark.parametrize("arguments", [("events",), ("status",), ("show", "light"), ("jobs",), ("logs",)], ids=" ".join)
def test_a_terminal_gets_no_escape_sequence_but_colours(daemon: FakeDaemon, arguments: tuple[str, ...]) -> None:
    """A painted text is painted by llmctl, and not by what stands in it."""
    with TerminalRun(daemon.socket_path, *arguments, columns=200) as run:
        run.wait()
    assert "name" in run.text
    assert not _STEERING.findall(_COLOURS.sub("", run.raw).replace("\r\n", "\n"))


def test_json_on_a_terminal_escapes_what_json_need_not(daemon: FakeDaemon) -> None:
    """JSON itself lets stand what some terminals take for the beginning of a command."""
    ended = llmctl(daemon.socket_path, "show", "light", "--json")
    assert not _STEERING.findall(ended.stdout)
    assert "\\u009b2J" in ended.stdout


def test_an_error_of_the_daemon_is_printed_without_its_control_characters(daemon: FakeDaemon) -> None:
    """Errors quote names that came from elsewhere."""
    daemon.error("GET", "/llm/models/light", f"no {HOSTILE}", status=404, code="model_not_found")
    ended = llmctl(daemon.socket_path, "show", "light")
    assert ended.code == 4
    assert "name" in ended.stderr
    assert not _STEERING.findall(ended.stderr)
