"""What is written down of each inference request, and how it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.fake_service import ENCODERS, FakeService, Script
from tests.support.http_front import CHAT, Served, served
from tests.support.polling import eventually

from llmvisor.control.api import UsageRow
from llmvisor.errors import QueueFull, RuntimeCrashed
from llmvisor.store.usage import EndedRequest

MESSAGES = [{"role": "user", "content": "hi"}]


async def only(front: Served) -> EndedRequest:
    """The one request that was written down; it is, just after its answer has gone."""
    await eventually(lambda: front.ended)
    (request,) = front.ended
    return request


def taken(request: EndedRequest) -> tuple[object, ...]:
    return request.task_type, request.status, request.prompt_tokens, request.cached_tokens, request.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_is_written_down_with_all_that_it_took(tmp_path: Path, stream: bool) -> None:
    """Model, tier, tokens, times and its id, streamed or whole."""
    async with served(tmp_path) as front:
        answer = await front.chat(model="light", stream=stream)
        request = await only(front)
    assert taken(request) == ("chat", "succeeded", 5, 2, 3)
    assert (request.model, request.service, request.tier) == ("smol", "local", "light")
    assert request.request_id == answer.headers["X-Request-Id"]
    assert request.first_token_ms is not None
    assert 0 < request.first_token_ms <= request.total_ms
    assert request.time.endswith("+00:00")


async def test_prompts_of_one_request_are_one_row(tmp_path: Path) -> None:
    """A request with several prompts and choices counts the tokens of all of them, once."""
    async with served(tmp_path) as front:
        await front.post("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2})
        request = await only(front)
    assert taken(request) == ("completion", "succeeded", 15, 6, 18)


@pytest.mark.parametrize(
    ("path", "body", "task", "tokens"),
    [
        ("/v1/embeddings", {"model": "bge", "input": ["ab", "c"]}, "embedding", 3),
        ("/embed", {"model": "bge", "inputs": "abc"}, "embedding", 3),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["b", "c"]}, "rerank", 20),
        ("/v1/score", {"model": "rank", "text_1": "a", "text_2": "b"}, "score", 10),
    ],
)
async def test_texts_are_written_down_with_their_tokens(
    tmp_path: Path, path: str, body: dict[str, object], task: str, tokens: int
) -> None:
    """Embeddings and scores count what was read."""
    async with served(tmp_path, FakeService(statuses=ENCODERS)) as front:
        answer = await front.post(path, body)
        assert answer.status == 200, answer.body
        request = await only(front)
    assert taken(request) == (task, "succeeded", tokens, 0, 0)
    assert request.first_token_ms is None


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_is_written_down_with_its_code(tmp_path: Path, stream: bool) -> None:
    """A model that fails in the middle: the error's code, and the tokens that had come."""
    script = Script(fail=RuntimeCrashed("the worker crashed"), fail_after=2)
    async with served(tmp_path, FakeService(script=script)) as front:
        await front.chat(stream=stream)
        request = await only(front)
    assert taken(request) == ("chat", "runtime_crashed", 0, 0, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_and_bug_are_written_down(tmp_path: Path, stream: bool) -> None:
    """A request that never ran is one that failed, too, and so is one that met a bug."""
    service = FakeService(script=Script(refuse=QueueFull("too many wait")))
    async with served(tmp_path, service) as front:
        await front.chat(stream=stream)
        assert (await only(front)).status == "queue_full"
        front.ended.clear()
        service.script = Script(fail=KeyError("a bug"))
        await front.chat(stream=stream)
        assert (await only(front)).status == "internal_error"


async def test_client_that_leaves_is_written_down_as_cancelled(tmp_path: Path) -> None:
    """What had been generated when it left is counted."""
    service = FakeService(script=Script(endless=True, pause=asyncio.Event()))
    async with served(tmp_path, service) as front:
        async with front.tcp.post(front.url + CHAT, json={"messages": MESSAGES, "stream": True}) as answer:
            await answer.content.readany()
        request = await only(front)
    assert request.status == "cancelled"
    assert request.completion_tokens >= 1
    assert request.first_token_ms is not None


async def test_requests_that_reach_no_model_are_not_written_down(tmp_path: Path) -> None:
    """Lists, questions about tokens, wrong requests and unknown models are no usage."""
    async with served(tmp_path) as front:
        await front.get("/v1/models")
        await front.get("/health")
        await front.post("/tokenize", {"content": "a"})
        await front.post(CHAT, {"messages": 5})
        await front.chat(model="nosuch")
        await front.manage("GET", "/llm/status")
        await front.chat()
        assert (await only(front)).model == "smol"


async def test_requests_side_by_side_are_not_mixed_up(tmp_path: Path) -> None:
    """Each request has its own tokens, whatever id its client gave it."""
    async with served(tmp_path, FakeService(script=Script(by_prompt=True))) as front:
        texts = ["one", "one two", "one two three"]
        calls = [front.post("/v1/completions", {"prompt": text}, headers={"X-Request-Id": "same"}) for text in texts]
        await asyncio.gather(*calls)
        await eventually(lambda: len(front.ended) == 3)
    assert sorted(request.completion_tokens for request in front.ended) == [1, 2, 3]
    assert {request.request_id for request in front.ended} == {"same"}


async def test_usage_is_asked_for_by_groups_and_day(tmp_path: Path) -> None:
    """The groups in their order, and the first day, reach the daemon; its rows come back as a list."""
    row = UsageRow(2, 1, 10, 4, 5, 20.0, 100.0, 0.0, model="smol", day="2026-05-01")
    async with served(tmp_path) as front:
        front.control.usage_rows = [row]
        answer = await front.manage("GET", "/usage?group_by=model,day&since=2026-05-01")
        await front.manage("GET", "/usage")
    assert answer.status == 200
    assert answer.json["object"] == "list"
    assert (
        answer.json["data"][0] | {"requests": 2, "errors": 1, "model": "smol", "day": "2026-05-01"}
        == answer.json["data"][0]
    )
    assert front.control.usage_asked == [(["model", "day"], "2026-05-01"), ([], None)]


@pytest.mark.parametrize("query", ["group_by=colour", "group_by=model,day;drop", "since=yesterday", "since=2026-05-1"])
async def test_wrong_question_about_usage_is_refused(tmp_path: Path, query: str) -> None:
    """Only known groups and whole days."""
    async with served(tmp_path) as front:
        answer = await front.manage("GET", f"/usage?{query}")
        assert answer.status == 400
        assert answer.error["param"] == query.partition("=")[0]
        assert front.control.usage_asked == []


async def test_usage_is_not_for_everybody_on_the_port(tmp_path: Path) -> None:
    """Who asked what is told on the Unix socket alone."""
    async with served(tmp_path) as front:
        assert (await front.get("/usage")).status == 404
