"""Errors as clients see them: one shape, the right status, nothing of our insides."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import http_parser
from structlog.testing import capture_logs
from tests.support.fake_service import FakeService, FakeStream, Script
from tests.support.http_front import CHAT, Served, served

from llmvisor import errors
from llmvisor.http.connections import check_parser
from llmvisor.services.service import Generation

ERRORS: list[tuple[errors.LlmvisorError, int, str, str]] = [
    (errors.InvalidRequest("x", param="a.b"), 400, "invalid_request_error", "invalid_value"),
    (errors.ContextLengthExceeded("9000 of 8192 tokens"), 400, "invalid_request_error", "context_length_exceeded"),
    (errors.UnsupportedOperation("x"), 400, "invalid_request_error", "unsupported_operation"),
    (errors.ModelNotFound("x"), 404, "invalid_request_error", "model_not_found"),
    (errors.TierNotConfigured("No models available for tier: heavy"), 404, "model_error", "tier_not_configured"),
    (errors.ModelLoadFailed("bad magic"), 503, "model_error", "model_load_failed"),
    (errors.InsufficientMemory("x"), 503, "model_error", "insufficient_memory"),
    (errors.ModelLoading("x", retry_after_seconds=5), 503, "model_error", "model_loading"),
    (errors.ModelUnavailable("x"), 503, "model_error", "model_unavailable"),
    (errors.ModelUnloaded("x"), 503, "model_error", "model_unloaded"),
    (errors.RuntimeCrashed("x"), 503, "model_error", "runtime_crashed"),
    (errors.QueueFull("x", retry_after_seconds=0.2), 503, "server_error", "queue_full"),
    (errors.ShuttingDown("x", retry_after_seconds=1), 503, "server_error", "shutting_down"),
    (errors.InternalError("x"), 500, "server_error", "internal_error"),
]

RETRY_AFTER = {"model_loading": "5"} | dict.fromkeys(
    ("model_unloaded", "runtime_crashed", "queue_full", "shutting_down"), "1"
)
"""Whole seconds, at least one; one where the service does not say."""


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


@pytest.mark.parametrize(("error", "status", "kind", "code"), ERRORS, ids=[row[3] for row in ERRORS])
async def test_error_has_its_row_of_the_table(
    tmp_path: Path, error: errors.LlmvisorError, status: int, kind: str, code: str
) -> None:
    """Status, type, code, message, param and Retry-After of each error of the service, refused at once or later."""
    for script in (Script(refuse=error), Script(fail=error)):
        async with served(tmp_path, FakeService(script=script)) as front:
            for stream in (False, True):
                answer = await front.chat(stream=stream)
                assert answer.status == status
                assert answer.error == {"message": error.message, "type": kind, "code": code, "param": error.param}
                assert answer.headers.get("Retry-After") == RETRY_AFTER.get(code)


async def test_hint_is_part_of_the_message(tmp_path: Path) -> None:
    """The next step that a person can take reaches them."""
    refuse = errors.ModelUnavailable("it crashed too often", hint="`llmctl restart light` tries it again")
    async with served(tmp_path, FakeService(script=Script(refuse=refuse))) as front:
        answer = await front.chat()
        assert answer.error["message"] == "it crashed too often (`llmctl restart light` tries it again)"


async def test_unknown_path_and_method_are_json(front: Served) -> None:
    """The framework's own refusals have our shape, and say which methods there are."""
    missing = await front.get("/v1/nothing")
    assert (missing.status, missing.error["code"], missing.error["type"]) == (404, "not_found", "invalid_request_error")
    wrong = await front.get(CHAT)
    assert (wrong.status, wrong.error["code"], wrong.headers["Allow"]) == (405, "method_not_allowed", "POST")


async def test_body_errors_have_their_codes(front: Served) -> None:
    """No JSON, a wrong type and a missing field are told apart."""
    assert (await front.post_bytes(CHAT, b"{nope")).error["code"] == "invalid_json"
    assert (await front.post_bytes(CHAT, b"")).error["code"] == "invalid_json"
    assert (await front.post_bytes(CHAT, b"[1]")).error["code"] == "invalid_value"
    missing = await front.post(CHAT, {})
    assert (missing.error["code"], missing.error["param"]) == ("invalid_value", "messages")
    deep = await front.post_bytes(CHAT, b'{"x":' + b"[" * 500_000)
    assert (deep.status, deep.error["code"]) == (400, "invalid_json")


async def test_bug_is_500_with_the_request_id_and_logged_with_its_traceback(tmp_path: Path) -> None:
    """The client learns where to look, and nothing of our insides."""
    service = FakeService(script=Script(fail=ZeroDivisionError("secret")))
    async with served(tmp_path, service) as front:
        for stream in (False, True):
            with capture_logs() as lines:
                answer = await front.chat(stream=stream)
            assert (answer.status, answer.error["code"], answer.error["type"]) == (
                500,
                "internal_error",
                "server_error",
            )
            assert answer.headers["X-Request-Id"] in answer.error["message"]
            assert b"secret" not in answer.body
            assert b"Traceback" not in answer.body
            assert any(line["log_level"] == "error" and line.get("exc_info") for line in lines)
        assert (await front.manage("GET", "/llm/status")).status == 200
        front.control.failure = RuntimeError("secret")
        with capture_logs():
            broken = await front.manage("GET", "/llm/status")
        assert (broken.status, broken.error["code"]) == (500, "internal_error")


async def test_request_id_is_echoed_or_made(front: Served) -> None:
    """A sound id comes back on answers, errors and streams; a bad one is replaced; made ones differ."""
    sound = "req-A_1.2:3/4+5=6@7,8"
    bodies: list[dict[str, Any]] = [{"messages": []}, {"messages": [{"role": "user", "content": "x"}], "stream": True}]
    for body in bodies:
        answer = await front.post(CHAT, body, headers={"X-Request-Id": sound})
        assert answer.headers["X-Request-Id"] == sound
    assert front.service.generations[0].request_id == sound
    for bad in ("a b", "x" * 129, "é", "<script>", '"'):
        answer = await front.get("/livez", headers={"X-Request-Id": bad})
        assert answer.headers["X-Request-Id"].startswith("req_")
    assert (await front.get("/livez", headers={"X-Request-Id": "x" * 128})).headers["X-Request-Id"] == "x" * 128
    made = {(await front.get("/livez")).headers["X-Request-Id"] for _ in range(5)}
    assert len(made) == 5


async def test_each_request_is_one_access_line_without_its_content(front: Served) -> None:
    """Method, path, status, time and model; the prompt and the query stay out of the log."""
    with capture_logs() as lines:
        await front.chat("canary-prompt", model="tiny")
        await front.get("/v1/models?key=canary-query")
        await front.get("/nothing")
    access = [line for line in lines if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"], line["model"]) for line in access] == [
        ("POST", CHAT, 200, "smol"),
        ("GET", "/v1/models", 200, None),
        ("GET", "/nothing", 404, None),
    ]
    assert all(line["ms"] >= 0 for line in access)
    assert "canary" not in repr(lines)


async def test_log_lines_of_a_request_carry_its_id(tmp_path: Path) -> None:
    """What is logged while a request is served can be found by its id, and requests do not mix."""
    seen: list[tuple[str, str]] = []

    class Logging(FakeService):
        def generate(self, model: str, generation: Generation) -> FakeStream:
            seen.append((structlog.contextvars.get_contextvars()["request_id"], generation.request_id))
            return super().generate(model, generation)

    async with served(tmp_path, Logging()) as front:
        for _ in range(3):
            await front.chat()
    assert all(bound == given for bound, given in seen)
    assert len({bound for bound, _ in seen}) == 3


async def test_log_line_of_a_path_stays_one_line(front: Served) -> None:
    """Line breaks and kilobytes in a path do not reach the log."""
    with capture_logs() as lines:
        await front.get("/a%0afake%20line" + "x" * 1000)
    (line,) = [line for line in lines if line["event"] == "request"]
    assert "\n" not in line["path"]
    assert len(line["path"]) <= 200


def test_parser_has_to_be_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the front refuses to be built, and says what to do."""
    check_parser()
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(errors.StartError, match="AIOHTTP_NO_EXTENSIONS"):
        check_parser()
