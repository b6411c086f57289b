"""What was answered once is not computed again, streamed or whole; and nothing is answered that was not asked."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

QUESTION = {"model": "mock", "messages": [{"role": "user", "content": "Say it."}], "temperature": 0, "max_tokens": 5}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {"mock": mock_model(reply_tokens=5), "slow": mock_model(token_delay_ms=100, reply_tokens=10)}
    with no_leaks(), Daemon({"models": models, "cache": {"enabled": True}}) as one:
        yield one


@pytest.fixture(autouse=True)
def empty(daemon: Daemon) -> None:
    daemon.control("POST", "/internal/cache/clear")


def ask(daemon: Daemon, path: str = CHAT, headers: dict[str, str] | None = None, **fields: object) -> tuple[str, bytes]:
    """Where the answer came from, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    body = json.dumps({**QUESTION, **fields})
    connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status == 200, data
    return answer.headers["X-LLMVISOR-Cache"], data


def said(data: bytes) -> list[Any]:
    """The choices of a whole answer, or of a stream's events."""
    if data.startswith(b"{"):
        return [choice["message"]["content"] for choice in json.loads(data)["choices"]]
    events = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    return ["".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])]


def test_second_answer_comes_from_the_cache_streamed_or_not(daemon: Daemon) -> None:
    """Whole, then whole again, then as a stream: the same words, and only the first is computed."""
    first, whole = ask(daemon)
    second, again = ask(daemon)
    third, stream = ask(daemon, stream=True)
    assert (first, second, third) == ("miss", "hit", "hit")
    assert said(whole) == said(again) == said(stream)
    assert json.loads(whole)["usage"] == json.loads(again)["usage"]
    assert json.loads(whole)["id"] != json.loads(again)["id"]
    assert stream.rstrip().endswith(b"data: [DONE]")


def test_same_question_at_the_same_time_is_computed_once(daemon: Daemon) -> None:
    answers: list[tuple[str, bytes]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(daemon, model="slow"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(state for state, _ in answers) == ["coalesced", "coalesced", "coalesced", "miss"]
    assert len({str(said(data)) for _, data in answers}) == 1


def test_cache_control_is_honoured(daemon: Daemon) -> None:
    assert ask(daemon, headers={"Cache-Control": "no-store"})[0] == "off"
    assert ask(daemon)[0] == "miss"
    assert ask(daemon, headers={"Cache-Control": "no-cache"})[0] == "miss"
    assert ask(daemon, headers={"Cache-Control": "max-age=60"})[0] == "hit"


def test_what_is_drawn_anew_each_time_is_not_kept(daemon: Daemon) -> None:
    for temperature in (1, None):
        assert [ask(daemon, temperature=temperature)[0] for _ in range(2)] == ["off", "off"]
    assert [ask(daemon, temperature=1, seed=4)[0] for _ in range(2)] == ["miss", "hit"]


def test_failed_answer_is_not_kept(daemon: Daemon) -> None:
    """A worker that dies in the middle: the next request is computed, by the next worker."""
    text = "[[failpoint: generate=1*token->error]]"
    for _ in range(2):
        status, answer = daemon.request("POST", CHAT, {**QUESTION, "messages": [{"role": "user", "content": text}]})
        assert status >= 400, answer
    status, stats = daemon.request("GET", "/internal/cache/stats")
    assert status == 200
    assert stats["entries"] == 0


def test_embeddings_and_scores_are_kept(daemon: Daemon) -> None:
    embed = {"model": "mock", "input": ["one", "two"]}
    score = {"model": "mock", "query": "one", "documents": ["one", "two"]}
    for path, body in (("/v1/embeddings", embed), ("/v1/rerank", score)):
        states = [ask(daemon, path, **body)[0] for _ in range(2)]  # pyright: ignore[reportArgumentType]
        assert states == ["miss", "hit"], path


def test_stats_tell_what_the_cache_did(daemon: Daemon) -> None:
    _, before = daemon.request("GET", "/internal/cache/stats")
    ask(daemon)
    ask(daemon)
    _, after = daemon.request("GET", "/internal/cache/stats")
    assert after["entries"] == 1
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 1)
    assert daemon.control("POST", "/internal/cache/clear") == (200, {"cleared": 1})


def test_answers_on_disk_outlive_the_daemon(tmp_path: Path) -> None:
    """1. An answer is kept on disk. 2. The daemon is started anew. Result: a hit, before any worker runs."""
    config = {
        "models": {"mock": mock_model(reply_tokens=5)},
        "cache": {"enabled": True, "persist_to_disk": True, "dir": str(tmp_path / "answers")},
    }
    with Daemon(config) as daemon:
        state, first = ask(daemon)
        assert state == "miss"
        eventually_sync(lambda: len(list((tmp_path / "answers").glob("*.answer"))) == 1)
    with Daemon(config) as daemon:
        state, second = ask(daemon)
        assert (state, said(second)) == ("hit", said(first))
        assert daemon.runtime("mock")["state"] == "not_loaded"
