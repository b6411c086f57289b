"""`llmctl bench`: what it asks, how it counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon, as_object
from tests.support.llmctl_process import llmctl

from llmctl.bench import BenchAnswer, Sample, levels, summed_up

PATH = "/v1/completions"


def chunks(*texts: str) -> list[tuple[str | None, object]]:
    pieces: list[tuple[str | None, object]] = [(None, {"choices": [{"text": text}]}) for text in texts]
    usage = {"prompt_tokens": 500, "completion_tokens": len(texts)}
    return [*pieces, (None, {"choices": [], "usage": usage}), (None, "[DONE]")]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("GET", "/llm/models/light", fake.model())
        daemon.stream("POST", PATH, chunks("a", "b", "c"))
        yield daemon


def test_bench_asks_at_each_level_with_prompts_of_their_own(daemon: FakeDaemon) -> None:
    """One to warm up, then 1, 2 and 3 at once; no prompt begins as another, none is kept, none ends early."""
    ended = llmctl(daemon.socket_path, "bench", "light", "-c", "3", "--prompt-tokens", "200", "--max-tokens", "3")
    assert ended.code == 0
    asked = [as_object(request) for request in daemon.asked("POST", PATH)]
    assert len(asked) == 1 + 1 + 2 + 3
    assert len({body["prompt"] for body in asked}) == len(asked)
    assert {body["model"] for body in asked} == {"light/smollm2-135m-instruct"}
    assert all(body["ignore_eos"] and not body["cache_prompt"] and body["stream"] for body in asked)
    assert [len(body["prompt"].split()) for body in asked[1:]] == [200] * 6
    rows = ended.stdout.splitlines()
    assert rows[0] == "light/smollm2-135m-instruct: prompts of 500 tokens, answers of 3"
    assert [row.split()[0] for row in rows[2:]] == ["1", "2", "3"]


def test_bench_json_is_for_programs(daemon: FakeDaemon) -> None:
    """The same as numbers."""
    shown = llmctl(daemon.socket_path, "bench", "light", "-c", "2", "--json").stdout
    answer = msgspec.json.decode(shown, type=BenchAnswer)
    assert [row.concurrency for row in answer.rows] == [1, 2]
    assert answer.prompt_tokens == 500
    assert json.loads(shown)["rows"][0]["prefill_tokens_per_second"] > 0


def test_bench_of_a_model_without_text_is_refused(daemon: FakeDaemon) -> None:
    """An embedding model is told from others before anything is asked of it."""
    daemon.answer("GET", "/llm/models/embedding", fake.model(type="embeddings"))
    ended = llmctl(daemon.socket_path, "bench", "embedding")
    assert ended.code == 1
    assert "generates no text" in ended.stderr
    assert daemon.asked("POST", PATH) == []


def test_bench_tells_why_it_cannot(daemon: FakeDaemon) -> None:
    """An unknown model is exit code 4; an error within an answer, and an answer without text, are told."""
    assert llmctl(daemon.socket_path, "bench", "nothing").code == 4
    assert llmctl(daemon.socket_path, "bench", "light", "-c", "100000").code == 2
    daemon.stream("POST", PATH, [(None, {"error": {"message": "it crashed", "type": "x", "code": "y"}})])
    ended = llmctl(daemon.socket_path, "bench", "light")
    assert (ended.code, ended.stderr) == (1, "llmctl: it crashed\n")
    daemon.stream("POST", PATH, [(None, "[DONE]")])
    assert "before it had any text" in llmctl(daemon.socket_path, "bench", "light").stderr
    daemon.error("POST", PATH, "too long for the context", status=400, code="context_length_exceeded")
    assert "too long for the context" in llmctl(daemon.socket_path, "bench", "light", "-c", "2").stderr


def test_levels_double_up_to_the_last() -> None:
    """The number that was asked for is always measured."""
    assert [levels(most) for most in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]


def test_speeds_are_of_all_requests_together() -> None:
    """Reading lasts until the last prompt is read; the first token of each answer is not written in measured time."""
    row = summed_up([Sample(0.0, 1.0, 3.0, 100, 21), Sample(0.0, 2.0, 4.0, 100, 41)])
    assert row.first_token_seconds == 1.5
    assert row.first_token_seconds_max == 2.0
    assert row.prefill_tokens_per_second == 100.0
    assert row.decode_tokens_per_second == 20.0
    assert row.decode_tokens_per_second_each == 15.0
    assert summed_up([Sample(0.0, 0.0, 0.0, 1, 1)]).decode_tokens_per_second == 0.0
