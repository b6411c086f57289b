"""The management paths over the Unix socket: what `llmctl` asks, and what it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.support.fake_control import RUNTIME, TIME, job, record
from tests.support.http_front import Served, served
from tests.support.polling import eventually

from llmvisor.control.api import DaemonStatus, Event, Job, LogRecord, RuntimeStatus, UpgradeRequest
from llmvisor.http.settings import HttpSettings
from llmvisor.jobs.history import JobEvent


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path, settings=HttpSettings(heartbeat_seconds=0.2, handler_cleanup_seconds=0.2)) as it:
        yield it


async def ids(front: Served, path: str) -> list[str]:
    answer = await front.manage("GET", path)
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "list"
    return [one["id"] for one in answer.json["data"]]


class Feed:
    """Reads a stream of events, one at a time."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def block(self) -> str:
        return (await asyncio.wait_for(self.response.content.readuntil(b"\n\n"), 5)).decode().strip()

    async def event(self) -> tuple[str, bytes]:
        """Kind and data of the next event; comments are passed over."""
        while (block := await self.block()).startswith(":"):
            pass
        kind, data = (line for line in block.split("\n") if not line.startswith("id: "))
        return kind.removeprefix("event: "), data.removeprefix("data: ").encode()


async def test_status_and_runtimes_are_the_daemons_own(front: Served) -> None:
    """The Structs that llmctl shares come through unchanged."""
    status = msgspec.json.decode((await front.manage("GET", "/llm/status")).body, type=DaemonStatus)
    assert status.runtimes == [RUNTIME]
    assert await ids(front, "/llm/runtimes") == ["smol"]
    for name in ("smol", "light%2Fsmol", "light/smol", "light", "tiny"):
        one = msgspec.json.decode((await front.manage("GET", f"/llm/runtimes/{name}")).body, type=RuntimeStatus)
        assert one == RUNTIME
    assert (await front.manage("GET", "/llm/runtimes/nosuch")).status == 404


async def test_restart_is_a_load_job(front: Served) -> None:
    """By any name; the answer is the job that does it."""
    for name in ("light/smol", "tiny"):
        answer = await front.manage("POST", f"/llm/runtimes/{name}/restart")
        assert answer.status == 202
        assert msgspec.json.decode(answer.body, type=Job).params.restart
    assert [(request.type, request.params.model) for request in front.control.submitted] == [("load", "smol")] * 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["light/smol", "plain", "embedding/bge"]),
        ("?type=llm", ["light/smol", "plain"]),
        ("?state=not_loaded", ["plain", "embedding/bge"]),
        ("?state=not_loaded&type=llm", ["plain"]),
        ("?tier=light", ["light/smol"]),
        ("?service=local", ["light/smol", "plain", "embedding/bge"]),
        ("?service=other", []),
        ("?q=SMO", ["light/smol"]),
        ("?q=tiny", ["light/smol"]),
        ("?limit=2", ["light/smol", "plain"]),
        ("?cursor=light/smol&limit=1", ["plain"]),
        ("?cursor=embedding/bge", []),
    ],
)
async def test_models_are_filtered_and_paged(front: Served, query: str, expected: list[str]) -> None:
    """Each filter alone and together."""
    assert await ids(front, f"/llm/models{query}") == expected


async def test_pages_of_models_are_the_whole_list(front: Served) -> None:
    """Following the cursors gives every model once, and ends."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = (await front.manage("GET", f"/llm/models?limit=1{cursor}")).json
        found += [model["id"] for model in answer["data"]]
        cursor = f"&cursor={answer['next_cursor']}" if answer["next_cursor"] else None
    assert found == await ids(front, "/llm/models")


REFUSED_QUERIES = [
    "state=happy",
    "limit=0",
    "limit=x",
    "limit=1001",
    "limit=-1",
    f"limit={9 * '0'}1{5000 * '0'}",
    "cursor=nosuch",
]


@pytest.mark.parametrize("query", REFUSED_QUERIES, ids=lambda query: query[:20])
async def test_wrong_filters_are_named(front: Served, query: str) -> None:
    """400 with the parameter's name."""
    answer = await front.manage("GET", f"/llm/models?{query}")
    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


async def test_one_model_by_any_name(front: Served) -> None:
    """With all that is known of it."""
    for name in ("light/smol", "light%2Fsmol", "tiny"):
        assert (await front.manage("GET", f"/llm/models/{name}")).json["aliases"] == ["tiny"]


async def test_job_is_submitted_with_its_model_resolved(front: Served) -> None:
    """202 with the job; unknown models, types and fields are refused."""
    answer = await front.manage("POST", "/jobs", json={"type": "unload", "params": {"model": "light", "force": True}})
    assert answer.status == 202
    (request,) = front.control.submitted
    assert (request.type, request.params.model, request.params.force) == ("unload", "smol", True)
    bad: list[tuple[Any, int]] = [
        ({"type": "load", "params": {"model": "nosuch"}}, 404),
        ({"type": "dance", "params": {"model": "light"}}, 400),
        ({"type": "load", "params": {}}, 400),
        ({"type": "load", "params": {"model": "light", "x": 1}}, 400),
        ([], 400),
    ]
    for body, status in bad:
        assert (await front.manage("POST", "/jobs", json=body)).status == status
    assert len(front.control.submitted) == 1


async def test_jobs_are_listed_with_filters(front: Served) -> None:
    """By state, type and model, page by page: also the oldest of very many are found."""
    front.control.job_list = [job("j3"), job("j2", state="failed"), job("j1", model="plain")]
    assert await ids(front, "/jobs") == ["j3", "j2", "j1"]
    assert await ids(front, "/jobs?state=failed") == ["j2"]
    assert await ids(front, "/jobs?model=light") == ["j3", "j2"]
    assert await ids(front, "/jobs?type=unload") == []
    assert await ids(front, "/jobs?limit=1") == ["j3"]
    first = (await front.manage("GET", "/jobs?limit=2")).json
    assert first["next_cursor"] == "j2"
    rest = (await front.manage("GET", f"/jobs?limit=2&cursor={first['next_cursor']}")).json
    assert ([one["id"] for one in rest["data"]], rest["next_cursor"]) == (["j1"], None)
    assert await ids(front, "/jobs?state=failed&cursor=j3") == ["j2"], "the cursor's job may have changed its state"
    assert (await front.manage("GET", "/jobs?state=odd")).status == 400


async def test_one_job_is_shown_cancelled_and_forgotten(front: Served) -> None:
    """Each with the status of its outcome."""
    front.control.job_list = [job("j1"), job("j2", state="succeeded")]
    assert (await front.manage("GET", "/jobs/j1")).json["progress"] == 0.5
    assert (await front.manage("POST", "/jobs/j1/cancel")).json["state"] == "cancelling"
    conflict = await front.manage("POST", "/jobs/j2/cancel")
    assert (conflict.status, conflict.error["code"]) == (409, "conflict")
    assert (await front.manage("DELETE", "/jobs/j2")).status == 204
    assert (await front.manage("GET", "/jobs/j2")).status == 404
    assert (await front.manage("POST", "/jobs/j2/cancel")).status == 404


async def test_job_events_begin_with_now_and_end_with_the_job(front: Served) -> None:
    """The state at once, each change, and the end of the stream after the last."""
    front.control.job_list = [job("j1")]
    async with front.unix.get("http://localhost/jobs/j1/events") as response:
        feed = Feed(response)
        assert await feed.event() == ("job", msgspec.json.encode(job("j1")))
        front.control.job_changes.publish(JobEvent(2, job("j1", progress=0.75)))
        kind, data = await feed.event()
        assert (kind, msgspec.json.decode(data, type=Job).progress) == ("job", 0.75)
        front.control.job_changes.publish(JobEvent(3, job("j1", state="succeeded")))
        assert b'"succeeded"' in await asyncio.wait_for(response.content.read(), 5)
    await eventually(lambda: front.control.subscribers == 0)
    front.control.job_list = [job("j2", state="failed")]
    ended = await front.manage("GET", "/jobs/j2/events")
    assert ended.body.count(b"event: job") == 1
    missing = await front.manage("GET", "/jobs/nosuch/events")
    assert (missing.status, missing.error["code"]) == (404, "not_found")


async def test_events_are_every_change_until_the_daemon_ends(front: Served) -> None:
    """Heartbeats while there is nothing, then what happens, then the end of the stream."""
    async with front.unix.get("http://localhost/events") as response:
        feed = Feed(response)
        assert await feed.block() == ": open"
        assert await feed.block() == ": waiting"
        front.control.events.publish(Event(time=TIME, kind="runtime", runtime=RUNTIME))
        kind, data = await feed.event()
        assert kind == "runtime"
        assert msgspec.json.decode(data, type=Event).runtime == RUNTIME
        front.control.close()
        assert await asyncio.wait_for(response.content.read(), 5) == b""


async def test_events_end_their_subscription_with_the_client(front: Served) -> None:
    """A client that leaves is not published to any more."""
    response = await front.unix.get("http://localhost/events")
    await eventually(lambda: front.control.subscribers == 1)
    response.close()
    await eventually(lambda: front.control.subscribers == 0)


async def test_logs_are_recent_lines(front: Served) -> None:
    """Those of this model, and of this level or above."""
    front.control.records = [
        record("one", level="debug"),
        record("two", level="warning", model="smol"),
        record("three", level="error", model="plain"),
    ]

    async def messages(query: str) -> list[str]:
        return [line["message"] for line in (await front.manage("GET", f"/logs{query}")).json["data"]]

    assert await messages("") == ["one", "two", "three"]
    assert await messages("?level=warning") == ["two", "three"]
    assert await messages("?model=light") == ["two"]
    assert await messages("?model=light&level=error") == []
    assert (await front.manage("GET", "/logs?level=loud")).error["param"] == "level"
    assert (await front.manage("GET", "/logs?model=nosuch")).status == 404


async def test_logs_follow_gives_what_was_then_what_comes(front: Served) -> None:
    """Filtered alike, and what a slow reader lost is counted."""
    front.control.records = [record("old", model="smol"), record("other", model="plain")]
    async with front.unix.get("http://localhost/logs?follow=true&model=light&level=info") as response:
        feed = Feed(response)
        kind, data = await feed.event()
        assert (kind, msgspec.json.decode(data, type=LogRecord).message) == ("log", "old")
        for line in (record("a", model="plain"), record("b", level="debug", model="smol"), record("c", model="smol")):
            front.control.log.publish(line)
        _, data = await feed.event()
        assert msgspec.json.decode(data, type=LogRecord).message == "c"
        for number in range(10):  # the hub of the fake holds four
            front.control.log.publish(record(f"n{number}", model="smol"))
        assert await feed.block() == ": 6 dropped"
        _, data = await feed.event()
        assert msgspec.json.decode(data, type=LogRecord).message == "n6"


async def test_config_is_shown_and_checked(front: Served) -> None:
    """Values with their origin; problems of a text as they are; nothing is applied."""
    values = (await front.manage("GET", "/config")).json["data"]
    assert values == [{"path": "server.port", "value": 8000, "layer": "default", "origin": "default"}]
    body = {"text": "server: {}", "name": "my.yaml"}
    assert (await front.manage("POST", "/config/check", json=body)).json == {"valid": True, "problems": []}
    front.control.problems.append("my.yaml:1: no")
    answer = (await front.manage("POST", "/config/check", json=body)).json
    assert answer == {"valid": False, "problems": ["my.yaml:1: no"]}
    assert front.control.checked == [("server: {}", "my.yaml")] * 2


async def test_config_is_read_again_and_written(front: Served) -> None:
    """What came of it; a mistake is a 400; a PUT is a whole text and nothing else."""
    answer = await front.manage("POST", "/config/reload")
    assert (answer.status, answer.json["outcome"]) == (200, "unchanged")
    assert (await front.manage("PUT", "/config", json={"text": "models: {}"})).status == 200
    assert (await front.manage("PUT", "/config", json={"text": 1})).status == 400
    assert (await front.manage("PUT", "/config", json={"text": "", "name": "x"})).status == 400
    assert front.control.put == ["models: {}"]
    front.control.reload_fails = True
    answer = await front.manage("POST", "/config/reload")
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_config")
    assert "config.yaml:3" in answer.json["error"]["message"]


async def test_shutdown_begins_once_asked_for(front: Served) -> None:
    """202, and the daemon is told; a GET does nothing."""
    assert (await front.manage("GET", "/shutdown")).status == 405
    assert front.control.shutdowns == 0
    assert (await front.manage("POST", "/shutdown", json={})).status == 202
    assert front.control.shutdowns == 1


async def test_upgrade_begins_once_asked_for(front: Served) -> None:
    """202 with how it stands; with a body or without; what is no bound is refused, and TCP has no such path."""
    assert (await front.manage("POST", "/restart", json={"timeout_seconds": -1})).status == 400
    assert (await front.manage("POST", "/restart", json={"timeout": 1})).status == 400
    assert front.control.restarts == []
    answer = await front.manage("POST", "/restart")
    assert (answer.status, answer.json) == (
        202,
        {"state": "checking", "attempts": 1, "completed": 0, "reason": None},
    )
    await front.manage("POST", "/restart", json={"timeout_seconds": 5, "force": True})
    assert front.control.restarts == [UpgradeRequest(), UpgradeRequest(5, force=True)]


async def test_inference_answers_on_the_unix_socket_too(front: Served) -> None:
    """`llmctl run` needs no TCP port."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await front.manage("POST", "/v1/chat/completions", json=body)).status == 200
