"""A13: what people ask, what models answer, and keys stand in no log, no argument list and no environment."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.polling import eventually_sync

PROMPT = "canary-prompt-4b1d"
KEY = "sk-canary-key-0123456789abcdef"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    config: Json = {
        "models": {
            "mock": mock_model(reply_tokens=8),
            "crashing": mock_model(reply_tokens=8, restart={"max": 1000, "backoff": [0.01, 0.05]}),
            "absent": {"backend": "llamacpp", "path": "/nonexistent/model.gguf"},
        },
        "server": {"api_keys": ["CANARY_KEY"]},
    }
    with Daemon(config, env={"CANARY_KEY": KEY, "OPENAI_API_KEY": KEY}) as daemon:
        yield daemon


def ask(daemon: Daemon, path: str, body: Json) -> tuple[int, object]:
    return daemon.request("POST", path, body, Authorization=f"Bearer {KEY}")


def texts(daemon: Daemon) -> Iterator[tuple[str, bytes]]:
    """Everything that the daemon and its workers leave where others may look."""
    yield "console", daemon.console_file.read_bytes()
    for path in daemon.folder.rglob("*"):
        if path.is_file() and path != daemon.config_file:
            yield str(path.relative_to(daemon.folder)), path.read_bytes()
    for process in [psutil.Process(daemon.pid), *daemon.descendants()]:
        try:
            yield f"cmdline {process.pid}", Path(f"/proc/{process.pid}/cmdline").read_bytes()
            if process.pid != daemon.pid:
                yield f"environ {process.pid}", Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
    for path in ("/llm/status", "/llm/runtimes", "/config", "/usage", "/keys"):
        yield path, json.dumps(daemon.control("GET", path)[1]).encode()


def leaks(daemon: Daemon, *canaries: str) -> list[str]:
    return [where for where, text in texts(daemon) for canary in canaries if canary.encode() in text]


def test_prompts_and_answers_are_not_written_down(daemon: Daemon) -> None:
    """At level debug, for every endpoint, in answers that succeed and in those that fail in every way."""
    messages = [{"role": "user", "content": PROMPT}]
    tool = {"type": "function", "function": {"name": "f", "description": PROMPT, "parameters": {"type": "object"}}}
    status, answer = ask(daemon, CHAT, {"model": "mock", "messages": messages})
    assert status == 200, answer
    ask(daemon, CHAT, {"model": "mock", "messages": messages, "tools": [tool], "stop": [PROMPT], "user": PROMPT})
    ask(daemon, "/v1/completions", {"model": "mock", "prompt": PROMPT, "suffix": PROMPT, "echo": True})
    ask(daemon, "/v1/embeddings", {"model": "mock", "input": PROMPT})
    ask(daemon, "/rerank", {"model": "mock", "query": PROMPT, "documents": [PROMPT]})
    ask(daemon, "/tokenize", {"model": "mock", "content": PROMPT})
    ask(daemon, "/apply-template", {"model": "mock", "messages": messages})
    ask(daemon, "/v1/completions", {"model": "absent", "prompt": PROMPT})
    ask(daemon, "/v1/completions", {"model": "mock", "prompt": PROMPT * 1000})
    ask(daemon, CHAT, {"model": "mock", "messages": [{"role": PROMPT, "content": PROMPT}]})
    ask(daemon, CHAT, {"model": "mock", "messages": messages, "temperature": PROMPT})
    ask(daemon, CHAT, {"model": "mock", "messages": messages, "response_format": {"type": PROMPT}})
    assert daemon.log_file.exists()
    assert leaks(daemon, PROMPT) == []


def test_crash_tells_who_was_inside_by_hash(daemon: Daemon) -> None:
    """A worker that dies with a request in it: log, last lines and postmortem have no word of the request."""
    prompt = f"[[failpoint: generate=2*token->kill(9)]] {PROMPT}"
    for _ in range(2):
        ask(daemon, "/v1/completions", {"model": "crashing", "prompt": prompt, "max_tokens": 8})
    status, postmortems = daemon.control("GET", "/llm/runtimes/crashing/postmortems")
    assert status == 200
    assert postmortems["data"]
    assert PROMPT not in json.dumps(postmortems)
    found = leaks(daemon, "failpoint: generate")
    assert found == []


def test_keys_are_in_no_argument_environment_or_log(daemon: Daemon) -> None:
    """Also wrong ones, which may be right elsewhere; and of the configuration only the variable's name is shown."""
    wrong = "sk-canary-wrong-fedcba9876543210"
    for headers in ({"Authorization": f"Bearer {wrong}"}, {"x-api-key": wrong}, {"Authorization": wrong}):
        assert daemon.request("GET", "/v1/models", **headers)[0] == 401
    daemon.request("GET", f"/v1/models?key={wrong}")
    assert daemon.complete("mock", max_tokens=1)[0] == 401
    assert leaks(daemon, KEY, wrong) == []
    status, made = daemon.control("POST", "/keys", {"name": "made"})
    assert status in {200, 201}
    assert daemon.request("GET", "/v1/models", Authorization=f"Bearer {made['key']}")[0] == 200
    assert leaks(daemon, made["key"]) == []


def test_stream_that_is_left_is_not_written_down(daemon: Daemon) -> None:
    """A client that hangs up in the middle is a line without its prompt."""
    body = {"model": "mock", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    connection = daemon.control_connection()
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    connection.getresponse().readline()
    connection.close()
    eventually_sync(lambda: daemon.runtime("mock")["slots_busy"] == 0, 10)
    assert leaks(daemon, PROMPT) == []
