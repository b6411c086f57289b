"""What the HTTP API's reference says of every endpoint: errors, ids, headers, models, health, management."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Generator
from typing import Any

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.leaks import no_leaks
from tests.support.polling import eventually_sync

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Say hello."}


@pytest.fixture(scope="module")
def daemon() -> Generator[Daemon]:
    models = {
        "mock": mock_model(tier="light", aliases=["parrot"], n_ctx=256),
        "vectors": mock_model(tier="embedding"),
        "broken": mock_model(failpoints="load=exit(78)"),
        "fragile": mock_model(restart={"max": 1}, failpoints="generate=token->kill(9)"),
    }
    with no_leaks(), Daemon({"models": models, "cache": {"enabled": True}}) as one:
        yield one


def ask(
    daemon: Daemon, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())
    finally:
        connection.close()


INVALID, MODEL = "invalid_request_error", "model_error"
ERRORS: dict[str, tuple[str, str, object, dict[str, str], int, str, str]] = {
    "no json": ("POST", CHAT, b"{", {}, 400, INVALID, "invalid_json"),
    "wrong type": ("POST", CHAT, {"messages": "hi"}, {}, 400, INVALID, "invalid_value"),
    "out of range": ("POST", CHAT, {"messages": [USER], "temperature": 3}, {}, 400, INVALID, "invalid_value"),
    "too long": (
        "POST",
        COMPLETIONS,
        {"model": "mock", "prompt": "word " * 5000},
        {},
        400,
        INVALID,
        "context_length_exceeded",
    ),
    "unknown model": ("POST", CHAT, {"model": "mokc", "messages": [USER]}, {}, 404, INVALID, "model_not_found"),
    "empty tier": ("POST", CHAT, {"model": "heavy", "messages": [USER]}, {}, 404, MODEL, "tier_not_configured"),
    "host": ("GET", "/v1/models", None, {"Host": "evil.example"}, 403, "permission_error", "host_not_allowed"),
    "origin": (
        "GET",
        "/v1/models",
        None,
        {"Origin": "https://evil.example"},
        403,
        "permission_error",
        "origin_not_allowed",
    ),
    "media type": ("POST", CHAT, b"{}", {"Content-Type": "text/plain"}, 415, INVALID, "unsupported_media_type"),
    "path": ("GET", "/v1/nothing", None, {}, 404, INVALID, "not_found"),
    "method": ("GET", CHAT, None, {}, 405, INVALID, "method_not_allowed"),
    "load fails": ("POST", CHAT, {"model": "broken", "messages": [USER]}, {}, 503, MODEL, "model_load_failed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_has_its_row_of_the_table(daemon: Daemon, name: str) -> None:
    """Status, type and code, in one shape whatever it was that refused."""
    method, path, body, headers, status, kind, code = ERRORS[name]
    found, _, answer = ask(daemon, method, path, body, **headers)
    assert (found, answer["error"]["type"], answer["error"]["code"]) == (status, kind, code)
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "code", "param"}
    assert answer["error"]["message"]


def test_model_that_crashes_too_often_is_unavailable(daemon: Daemon) -> None:
    """Requests that end its workers are refused as the cause; but where each one does, it is the model, which is not
    started again beyond its restart budget."""
    codes: list[str] = []

    def given_up() -> bool:
        status, _, answer = ask(daemon, "POST", COMPLETIONS, {"model": "fragile", "prompt": f"hi {len(codes)}"})
        codes.append(answer["error"]["code"])
        assert (status, answer["error"]["type"]) == (422 if codes[-1] == "poison_request" else 503, MODEL)
        return codes[-1] == "model_unavailable"

    eventually_sync(given_up, 60)
    blamed = codes.count("poison_request")
    assert codes[:blamed] == ["poison_request"] * blamed
    assert blamed > 1
    assert set(codes[blamed:]) <= {"runtime_crashed", "model_unavailable"}


def test_errors_say_what_helps(daemon: Daemon) -> None:
    """The field's path, both lengths, the nearest names, the tier, the header to send, the methods there are."""

    def error(body: object, path: str = CHAT, **headers: str) -> Any:
        return ask(daemon, "POST", path, body, **headers)[2]["error"]

    nested = error({"messages": [USER, {"role": "user", "content": 5}]})
    assert nested["param"].startswith("messages[1].content")
    assert error({"messages": [USER], "n": 17})["param"] == "n"
    long = error({"model": "mock", "prompt": "word " * 5000}, COMPLETIONS)
    assert "256" in long["message"]
    assert len(re.findall(r"\d+", long["message"])) >= 2
    assert "mock" in error({"model": "mokc", "messages": [USER]})["message"]
    assert "No models available for tier: heavy" in error({"model": "heavy", "messages": [USER]})["message"]
    assert "application/json" in error(b"{}", **{"Content-Type": "text/plain"})["message"]
    assert ask(daemon, "GET", CHAT)[1]["Allow"] == "POST"


BOUNDS: list[Json] = [
    *[{"temperature": value} for value in (-0.1, 2.1)],
    *[{"top_p": value} for value in (-0.1, 1.1)],
    *[{"min_p": value} for value in (-0.1, 1.1)],
    *[{name: value} for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 2.1)],
    *[{"n": value} for value in (0, 17)],
    *[{"logprobs": True, "top_logprobs": value} for value in (-1, 21)],
    {"top_k": -1},
    {"max_tokens": 0},
    {"stop": [str(number) for number in range(17)]},
]


@pytest.mark.parametrize("fields", BOUNDS, ids=str)
def test_values_out_of_bounds_are_named(daemon: Daemon, fields: Json) -> None:
    """400, with the field in `param`."""
    status, _, answer = ask(daemon, "POST", CHAT, {"model": "mock", "messages": [USER], **fields})
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
    assert answer["error"]["param"] == list(fields)[-1]


def test_unknown_fields_are_ignored(daemon: Daemon) -> None:
    """What OpenAI adds tomorrow is no error."""
    body = {"model": "mock", "messages": [USER], "max_tokens": 1, "field_of_tomorrow": {"a": 1}}
    assert ask(daemon, "POST", CHAT, body)[0] == 200


def test_ids_are_unique_and_ordered_by_time(daemon: Daemon) -> None:
    """Of answers, and of requests that bring none; one that is brought comes back."""
    body = {"model": "mock", "prompt": "hi", "max_tokens": 1}
    answers = [ask(daemon, "POST", COMPLETIONS, body) for _ in range(5)]
    ids = [answer["id"] for _, _, answer in answers]
    assert ids == sorted(set(ids))
    assert len({headers["X-Request-Id"] for _, headers, _ in answers}) == 5
    assert ask(daemon, "GET", "/v1/models", **{"X-Request-Id": "mine-1"})[1]["X-Request-Id"] == "mine-1"


def test_headers_tell_who_served_and_how_long_it_took(daemon: Daemon) -> None:
    """Model, cache, queue and load; the same greedy question again comes from the cache, unless that is not wanted."""
    body = {"model": "light", "messages": [{"role": "user", "content": "headers"}], "max_tokens": 1, "temperature": 0}
    _, first, _ = ask(daemon, "POST", CHAT, body)
    assert first["X-LLMVISOR-Model"] == "light/mock"
    assert float(first["X-LLMVISOR-Queue-Ms"]) >= 0
    assert float(first["X-LLMVISOR-Load-Ms"]) >= 0
    caches = [
        ask(daemon, "POST", CHAT, body, **extra)[1]["X-LLMVISOR-Cache"]
        for extra in ({}, {"Cache-Control": "no-store, no-cache"})
    ]
    assert [first["X-LLMVISOR-Cache"], *caches] == ["miss", "hit", "off"]
    stats = ask(daemon, "GET", "/internal/cache/stats")[2]
    assert stats["hits"] >= 1
    assert stats["entries"] >= 1


def test_models_are_listed_and_shown(daemon: Daemon) -> None:
    """By `tier/name` or `name`, once each; tiers, names and aliases resolve."""
    listed = {one["id"]: one for one in ask(daemon, "GET", "/v1/models")[2]["data"]}
    assert set(listed) == {"light/mock", "embedding/vectors", "broken", "fragile"}
    light = listed["light/mock"]
    assert (light["object"], light["owned_by"], light["tier"]) == ("model", "llmvisor-light", "light")
    assert {"created", "state", "type", "context_length", "capabilities", "size", "loaded_at"} <= light.keys()
    for name in ("light/mock", "mock", "parrot", "light"):
        assert ask(daemon, "GET", f"/v1/models/{name}")[2]["id"] == "light/mock"
        body = {"model": name, "prompt": "hi", "max_tokens": 1}
        assert ask(daemon, "POST", COMPLETIONS, body)[2]["model"] == "light/mock"


def test_health_and_probes_answer(daemon: Daemon) -> None:
    """For people, load balancers and probes."""
    status, _, health = ask(daemon, "GET", "/health")
    assert (status, health["status"]) == (200, "healthy")
    assert health["timestamp"].endswith("Z")
    assert ask(daemon, "GET", "/livez")[0] == ask(daemon, "GET", "/readyz")[0] == 200


def test_helpers_know_the_tokens_and_the_template(daemon: Daemon) -> None:
    """`/tokenize` and back, `/apply-template`."""
    tokens = ask(daemon, "POST", "/tokenize", {"model": "mock", "content": "hello you"})[2]["tokens"]
    assert tokens
    assert ask(daemon, "POST", "/detokenize", {"model": "mock", "tokens": tokens})[2]["content"] == "hello you"
    assert "Say hello." in ask(daemon, "POST", "/apply-template", {"model": "mock", "messages": [USER]})[2]["prompt"]


def test_management_answers_on_the_socket_alone(daemon: Daemon) -> None:
    """Runtimes, models, backends, configuration; the port knows none of these."""
    for path in (
        "/llm/status",
        "/llm/runtimes",
        "/llm/runtimes/mock",
        "/llm/models",
        "/llm/models/mock",
        "/jobs",
        "/config",
    ):
        assert daemon.control("GET", path)[0] == 200, path
        assert ask(daemon, "GET", path)[0] in {403, 404}, path


def test_job_is_accepted_followed_and_forgotten(daemon: Daemon) -> None:
    """A load: 202 with the job, its end, its events, and then it is gone."""
    status, job = daemon.control("POST", "/jobs", {"type": "load", "params": {"model": "vectors"}})
    assert status == 202
    assert re.fullmatch(r"job_\w+", job["id"])

    def ended() -> bool:
        return daemon.control("GET", f"/jobs/{job['id']}")[1]["state"] not in {"queued", "running"}

    eventually_sync(ended, 20)
    assert daemon.runtime("vectors")["state"] == "loaded"
    assert job["id"] in {one["id"] for one in daemon.control("GET", "/jobs")[1]["data"]}
    connection = daemon.control_connection()
    connection.request("GET", f"/jobs/{job['id']}/events")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert b"data: " in answer.read()
    connection.close()
    connection = daemon.control_connection()
    connection.request("DELETE", f"/jobs/{job['id']}", headers={"Content-Type": "application/json"})
    assert connection.getresponse().status in {200, 204}
    connection.close()
    assert daemon.control("GET", f"/jobs/{job['id']}")[0] == 404
