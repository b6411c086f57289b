"""`--json` of every command is the API's own object, and nothing else on stdout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon
from tests.support.llmctl_process import llmctl

from llmctl.bench import BenchAnswer
from llmctl.client import Page
from llmctl.command_table import COMMANDS
from llmvisor.control.api import (
    BackendStatus,
    CacheCleared,
    CacheStats,
    ConfigCheckAnswer,
    ConfigValue,
    DaemonStatus,
    Event,
    HealthAnswer,
    Job,
    KeyInfo,
    KeyMade,
    KeysStatus,
    LogRecord,
    ModelStatus,
    Postmortem,
    RegistryModel,
    RuntimeStatus,
    UpgradeStatus,
    UsageRow,
)
from llmvisor.http.management import ShutdownAnswer

EVENT = {"time": fake.START, "kind": "job", "job": fake.job()}
RECORD = {"time": fake.START, "level": "info", "module": "m", "message": "hello"}
BACKEND = {"name": "mock", "python": "/usr/bin/python", "installed": True, "usable": True}
STATS = {"entries": 3, "size_bytes": 2048, "hits": 5, "misses": 4, "coalesced": 1, "evictions": 0, "hit_rate": 0.6}
KEY = msgspec.to_builtins(
    KeyInfo(
        name="webapp",
        hint="…abcd",
        scopes=["inference"],
        models=[],
        rate_per_minute=None,
        concurrent=2,
        priority="high",
        created_at=fake.START,
        expires_at=None,
        expired=False,
        configured=False,
        running=0,
        requests=3,
        last_used_at=None,
    )
)

COMMAND_TYPES: dict[tuple[str, ...], Any] = {
    ("status",): DaemonStatus,
    ("status", "light"): RuntimeStatus,
    ("models",): Page[ModelStatus],
    ("models", "--limit", "1"): Page[ModelStatus],
    ("models", "rollback", "light"): Job,
    ("show", "light"): ModelStatus,
    ("backends",): Page[BackendStatus],
    ("logs",): LogRecord,
    ("jobs",): Page[Job],
    ("jobs", "show", "job_01"): Job,
    ("jobs", "show", "job_01", "job_02"): Page[Job],
    ("jobs", "watch", "job_01"): Job,
    ("jobs", "watch", "job_01", "job_02"): Page[Job],
    ("jobs", "cancel", "job_01"): Job,
    ("jobs", "cancel", "job_01", "job_02"): Page[Job],
    ("jobs", "prune"): Page[Job],
    ("usage",): Page[UsageRow],
    ("postmortem",): Page[Postmortem],
    ("postmortem", "light"): Page[Postmortem],
    ("keys",): KeysStatus,
    ("keys", "add", "webapp"): KeyMade,
    ("keys", "revoke", "webapp"): KeysStatus,
    ("cache",): CacheStats,
    ("cache", "clear"): CacheCleared,
    ("install", "starter"): Job,
    ("install", "starter", "--no-wait"): Job,
    ("import", "."): Job,
    ("search", "qwen"): Page[RegistryModel],
    ("update", "light"): Job,
    ("update", "--all"): Page[Job],
    ("delete", "light", "--yes"): Job,
    ("load", "light"): Job,
    ("unload", "light"): Job,
    ("restart", "light"): Job,
    ("bench", "light", "-c", "1"): BenchAnswer,
    ("health",): HealthAnswer,
    ("port",): dict[str, str | int],
    ("config", "show"): Page[ConfigValue],
    ("config", "check", "absent.yaml"): ConfigCheckAnswer,
    ("doctor",): dict[str, Any],
    ("restart-daemon",): UpgradeStatus,
    ("shutdown",): ShutdownAnswer,
}
WITHOUT_JSON = {
    "chat": "a conversation",
    "completion": "a script",
    "man": "a manual",
    "events": "see below",
    "embed": "OpenAI's own answer, see test_llmctl_encode.py",
    "rerank": "the API's own answer, see test_llmctl_encode.py",
    "service": "see test_llmctl_service.py",
    "start": "see test_llmctl_service.py",
    "stop": "see test_llmctl_service.py",
    "run": "OpenAI's own answer, see test_llmctl_talk.py",
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        first, second = fake.ended_job(), fake.ended_job(id="job_02")
        model = fake.model(source="hf:org/repo", revision="4f2a")
        for method, path, value in (
            ("GET", "/llm/status", fake.daemon_status(jobs=[first])),
            ("GET", "/llm/runtimes/light", fake.runtime()),
            ("GET", "/llm/models/light", model),
            ("GET", "/jobs/job_01", first),
            ("GET", "/jobs/job_02", second),
            ("POST", "/jobs", first),
            ("POST", "/jobs/job_01/cancel", fake.job(state="cancelling")),
            ("GET", "/internal/cache/stats", {**STATS, "persisted_entries": 0}),
            ("POST", "/internal/cache/clear", {"cleared": 3}),
            ("GET", "/health", {"status": "healthy", "timestamp": fake.START}),
            ("POST", "/shutdown", {"status": "stopping"}),
            ("GET", "/keys", {"asked": True, "problem": None, "data": [KEY]}),
            ("POST", "/keys", {"key": "llmv-x", "info": KEY}),
            ("DELETE", "/keys/webapp", KEY),
            ("POST", "/restart", {"state": "checking", "attempts": 1, "completed": -1, "reason": None}),
        ):
            daemon.answer(method, path, value)
        daemon.items("/llm/models", [model])
        daemon.items("/llm/backends", [BACKEND])
        daemon.items("/logs", [RECORD])
        daemon.job_list([first, second])
        daemon.items("/usage", [fake.usage_row()])
        daemon.items("/llm/registry/models", [fake.registry_model()])
        daemon.items("/config", [{"path": "server.port", "value": 1, "layer": "file", "origin": "x"}])
        daemon.items("/llm/postmortems", [fake.postmortem()])
        daemon.items("/llm/runtimes/light/postmortems", [fake.postmortem()])
        daemon.stream("GET", "/events", [("job", EVENT)])
        daemon.stream("POST", "/v1/completions", [completion("a"), completion("b"), (None, "[DONE]")])
        yield daemon


def completion(text: str) -> tuple[None, object]:
    return None, {"choices": [{"text": text}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


@pytest.mark.parametrize("arguments", COMMAND_TYPES, ids=" ".join)
def test_json_is_the_apis_own_object(daemon: FakeDaemon, arguments: tuple[str, ...], tmp_path: Path) -> None:
    """stdout is one JSON value of the type that the API has for it, without colours."""
    ended = llmctl(daemon.socket_path, *arguments, "--json", cwd=tmp_path)
    msgspec.json.decode(ended.stdout, type=COMMAND_TYPES[arguments])
    assert "\x1b" not in ended.stdout
    assert ended.stdout.endswith("\n")


def test_json_of_events_is_an_object_on_each_line(daemon: FakeDaemon) -> None:
    """For programs that read a stream."""
    shown = llmctl(daemon.socket_path, "events", "--json").stdout
    assert [msgspec.json.decode(line, type=Event).kind for line in shown.splitlines()] == ["job"]


def test_every_command_has_json() -> None:
    """A new command is listed here, or says why not."""
    names = {entry.name for _, members in COMMANDS for entry in members}
    assert names == {arguments[0] for arguments in COMMAND_TYPES} | set(WITHOUT_JSON)


@pytest.mark.parametrize("arguments", [("usage", "--by", "model,day"), ("cache",), ("cache", "clear")], ids=" ".join)
def test_usage_and_cache_are_for_people_too(daemon: FakeDaemon, arguments: tuple[str, ...]) -> None:
    """Counts and speeds with their units."""
    daemon.items("/usage", [fake.usage_row(day="2026-08-01")])
    shown = llmctl(daemon.socket_path, *arguments).stdout
    told = {
        "usage": r"light/smollm2-135m-instruct\s+2026-08-01\s+12\s+1\s+3.4K\s+800\s+950\s+84 ms\s+1.7s\n",
        "cache": r"answers   3, 2 KiB\n(.*\n)*hit rate  60%\n",
        "clear": r"3 answers forgotten\n",
    }
    assert re.search(told["clear" if "clear" in arguments else arguments[0]], shown)


def test_usage_asks_for_its_groups(daemon: FakeDaemon) -> None:
    """As the daemon names them; others are exit code 2."""
    llmctl(daemon.socket_path, "usage", "--by", "model, day", "--since", "2026-08-01")
    assert daemon.requests[0].query == {"group_by": "model,day", "since": "2026-08-01"}
    assert llmctl(daemon.socket_path, "usage", "--since", "yesterday").code == 2
    assert llmctl(daemon.socket_path, "usage", "--by", "colour").code == 2
