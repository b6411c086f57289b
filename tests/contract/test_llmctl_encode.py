"""`llmctl embed` and `rerank`: texts in, numbers out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_daemon import FakeDaemon, as_object
from tests.support.llmctl_process import TerminalRun, llmctl

VECTORS = {"object": "list", "data": [{"index": 0, "embedding": [0.5, 0.25]}, {"index": 1, "embedding": [1.0, 2.0]}]}
ORDER = {"object": "list", "data": [{"index": 1, "score": 0.95}, {"index": 0, "score": 0.125}]}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.answer("POST", "/v1/embeddings", VECTORS)
        daemon.answer("POST", "/v1/rerank", ORDER)
        yield daemon


def test_embed_prints_a_vector_on_each_line_of_a_pipe(daemon: FakeDaemon) -> None:
    """For programs: JSON lists, in the order of the texts."""
    ended = llmctl(daemon.socket_path, "embed", "m3", "one", "two", "--dimensions", "2")
    assert ended.code == 0, ended
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [[0.5, 0.25], [1.0, 2.0]]
    assert as_object(daemon.requests[0]) == {"model": "m3", "input": ["one", "two"], "dimensions": 2}


def test_embed_shows_a_table_on_a_terminal(daemon: FakeDaemon) -> None:
    """How many numbers, and how they begin."""
    with TerminalRun(daemon.socket_path, "embed", "m3", "one", "two") as run:
        assert run.wait() == 0
        shown = run.text
    assert "NUMBERS" in shown
    assert "0.5000 0.2500" in shown


def test_embed_takes_the_lines_that_are_piped_in(daemon: FakeDaemon) -> None:
    """Each line one text; empty ones are none."""
    llmctl(daemon.socket_path, "embed", "m3", stdin=b"one\n\ntwo\n")
    assert as_object(daemon.requests[0]) == {"model": "m3", "input": ["one", "two"]}


def test_rerank_puts_the_most_relevant_first(daemon: FakeDaemon) -> None:
    """With its score; escape sequences in a document do nothing."""
    ended = llmctl(daemon.socket_path, "rerank", "ranker", "a cat?", "\x1b[31mA car.", "An animal.", "--top", "2")
    assert [line.split(maxsplit=1)[0] for line in ended.stdout.splitlines()] == ["SCORE", "0.9500", "0.1250"]
    assert ended.stdout.splitlines()[1].endswith("An animal.")
    assert "\x1b" not in ended.stdout
    documents = ["\x1b[31mA car.", "An animal."]
    assert as_object(daemon.requests[0]) == {"model": "ranker", "query": "a cat?", "documents": documents, "top_n": 2}


@pytest.mark.parametrize(
    ("words", "answer"),
    [(["embed", "m3", "x"], VECTORS), (["rerank", "m3", "q", "a", "b"], ORDER)],
    ids=["embed", "rerank"],
)
def test_json_is_the_apis_answer(daemon: FakeDaemon, words: list[str], answer: object) -> None:
    """As it came."""
    assert json.loads(llmctl(daemon.socket_path, *words, "--json").stdout) == answer


@pytest.mark.parametrize("words", [["embed", "m3"], ["rerank", "m3", "q"]], ids=["embed", "rerank"])
def test_nothing_to_encode_is_a_usage_error(daemon: FakeDaemon, words: list[str]) -> None:
    """Exit code 2 and an example; the daemon is not asked."""
    ended = llmctl(daemon.socket_path, *words)
    assert ended.code == 2
    assert f"llmctl {words[0]} MODEL" in ended.stderr
    assert daemon.requests == []


@pytest.mark.parametrize("words", [["embed", "light", "x"], ["rerank", "light", "q", "a"]], ids=["embed", "rerank"])
def test_model_that_cannot_says_so(daemon: FakeDaemon, words: list[str]) -> None:
    """The daemon's message, and exit code 1."""
    error = {"message": "the model 'light' cannot do this", "type": "invalid_request_error", "code": "unsupported"}
    for path in ("/v1/embeddings", "/v1/rerank"):
        daemon.answer("POST", path, {"error": error}, status=400)
    ended = llmctl(daemon.socket_path, *words)
    assert (ended.code, ended.stdout) == (1, "")
    assert "cannot do this" in ended.stderr
