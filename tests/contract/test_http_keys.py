"""What the TCP port asks of a request that has a key, or none: over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from tests.support.fake_service import FakeService, Script
from tests.support.http_front import CHAT, Served, served
from tests.support.polling import eventually

from llmvisor.control.api import HealthAnswer
from llmvisor.http.front import FRONT
from llmvisor.http.settings import HttpSettings
from llmvisor.keys.key import ApiKey, configured_key, sha256_of

OWNER = "the-owners-own-key-0123456789"
SETTINGS = HttpSettings(handler_cleanup_seconds=0.2, management=True, cors_origins=("*",))


def key(name: str, **fields: Any) -> ApiKey:
    """A key whose text is its name, made long."""
    return ApiKey(name, sha256_of(text_of(name)), fields.pop("scopes", ["inference"]), **fields)


def text_of(name: str) -> str:
    return f"llmv-{name}-0123456789abcdef"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text_of(name)}"}


MESSAGES = [{"role": "user", "content": "hi"}]
KEYS = (
    configured_key("OWNER", OWNER),
    key("app"),
    key("light-only", models=["light"]),
    key("slow", rate_per_minute=2),
    key("one", concurrent=1),
    key("meek", priority="low"),
    key("admin", scopes=["management"]),
)


@pytest_asyncio.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path, settings=SETTINGS, keys=KEYS) as it:
        yield it


async def chat(front: Served, headers: dict[str, str], **fields: Any) -> Any:
    return await front.post(CHAT, {"messages": [{"role": "user", "content": "hi"}], **fields}, headers=headers)


# -------------------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {text_of('app')}"},
        {"Authorization": f"bearer  {text_of('app')} "},
        {"x-api-key": text_of("app")},
        {"Authorization": f"Bearer {OWNER}"},
    ],
)
async def test_key_is_taken_from_either_header(front: Served, headers: dict[str, str]) -> None:
    assert (await chat(front, headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer llmv-wrong"},
        {"Authorization": f"Basic {text_of('app')}"},
        {"Authorization": text_of("app")},
        {"x-api-key": ""},
        {"x-api-key": "wrong"},
        {"x-api-key": sha256_of(text_of("app"))},
    ],
)
async def test_missing_and_wrong_keys_are_refused_before_the_body_is_read(
    front: Served, headers: dict[str, str]
) -> None:
    """401 in OpenAI's form, with the challenge; the service is asked nothing."""
    answer = await chat(front, headers)
    assert answer.status == 401
    assert (answer.error["type"], answer.error["code"]) == ("authentication_error", "invalid_api_key")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert front.service.generations == []


async def test_two_keys_in_one_request_are_refused(front: Served) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:{front.port}\r\nConnection: close\r\n"
    twice = f"Authorization: Bearer {text_of('app')}\r\nAuthorization: Bearer wrong\r\n\r\n"
    assert (await front.raw((head + twice).encode())).startswith(b"HTTP/1.1 401")


async def test_a_key_in_the_address_is_no_key(front: Served) -> None:
    """It would stand in logs."""
    assert (await front.get(f"/v1/models?api_key={text_of('app')}&key={text_of('app')}")).status == 401


async def test_openai_client_raises_its_own_errors(front: Served) -> None:
    """An unmodified client understands 401, 403, 404 and 429."""
    url = f"{front.url}/v1"
    messages: Any = [{"role": "user", "content": "hi"}]

    async def ask(name: str, model: str = "smol") -> object:
        async with openai.AsyncOpenAI(base_url=url, api_key=text_of(name), max_retries=0) as client:
            return await client.chat.completions.create(model=model, messages=messages)

    with pytest.raises(openai.AuthenticationError):
        await ask("nobody")
    with pytest.raises(openai.PermissionDeniedError):
        await ask("admin")
    with pytest.raises(openai.NotFoundError):
        await ask("light-only", "plain")
    await ask("slow")
    await ask("slow")
    with pytest.raises(openai.RateLimitError):
        await ask("slow")


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
async def test_probes_need_no_key(front: Served, path: str) -> None:
    assert (await front.get(path)).status == 200


async def test_probes_without_a_key_are_told_no_reasons(front: Served) -> None:
    """They name models and folders; the socket is told them."""
    front.control.health_answer = HealthAnswer("degraded", "2026-01-01T00:00:00Z", ["light is error: no memory"])
    front.control.missing = ["light is loading"]
    assert (await front.get("/health")).json == {"status": "degraded", "timestamp": "2026-01-01T00:00:00Z"}
    assert (await front.get("/readyz")).json == {"status": "not ready"}
    assert "light" in (await front.manage("GET", "/health")).body.decode()


@pytest.mark.parametrize("path", ["/v1/models", "/internal/cache/stats", "/v1/models/smol", "/nothing/here"])
async def test_all_else_needs_one(front: Served, path: str) -> None:
    """Whether a path is there is told to those who have a key alone."""
    assert (await front.get(path)).status == 401
    assert (await front.get(path, headers=bearer("app"))).status == (404 if "nothing" in path else 200)


async def test_unix_socket_asks_for_no_key(front: Served) -> None:
    """Its mode says who may."""
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await front.manage("POST", CHAT, json=body)).status == 200
    assert (await front.manage("GET", "/keys")).json["asked"] is True


async def test_without_keys_nothing_is_asked(tmp_path: Path) -> None:
    """Whatever a client sends as its key is ignored, as other local servers do."""
    async with served(tmp_path) as front:
        assert (await chat(front, {"Authorization": "Bearer none"})).status == 200
        assert (await chat(front, {})).status == 200


# -------------------------------------------------------------------------------------------------- for which models


async def test_key_of_some_models_sees_no_others(front: Served) -> None:
    """By name, alias, tier and id; the others are as if they were not there."""
    for model in ("smol", "tiny", "light", "light/smol"):
        assert (await chat(front, bearer("light-only"), model=model)).status == 200
    for method, path in (("chat", CHAT), ("get", "/v1/models/plain")):
        headers = bearer("light-only")
        answer = await (chat(front, headers, model="plain") if method == "chat" else front.get(path, headers=headers))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    listed = await front.get("/v1/models", headers=bearer("light-only"))
    assert [model["id"] for model in listed.json["data"]] == ["light/smol"]
    everything = await front.get("/v1/models", headers=bearer("app"))
    assert len(everything.json["data"]) > 1


async def test_other_endpoints_hold_to_the_models_too(front: Served) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": "bge", "input": "a"}),
        ("/embed", {"model": "bge", "inputs": "a"}),
        ("/v1/completions", {"model": "plain", "prompt": "a"}),
        ("/tokenize", {"model": "plain", "content": "a"}),
    ):
        answer = await front.post(path, body, headers=bearer("light-only"))
        assert (path, answer.status) == (path, 404)


# -------------------------------------------------------------------------------------------------- how much


async def test_rate_is_told_on_every_answer_and_held(front: Served) -> None:
    """1. Two requests of a key of two in a minute. 2. A third. Result: 429, when to come back, and other keys go on."""
    left = [(await chat(front, bearer("slow"))).headers["X-RateLimit-Remaining-Requests"] for _ in range(2)]
    refused = await chat(front, bearer("slow"))
    assert left == ["1", "0"]
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert refused.headers["X-RateLimit-Limit-Requests"] == "2"
    assert (await chat(front, bearer("app"))).status == 200
    assert (await front.get("/v1/models", headers=bearer("slow"))).status == 200
    assert "X-RateLimit-Limit-Requests" not in (await chat(front, bearer("app"))).headers


async def test_requests_at_once_are_held_until_the_first_has_ended(tmp_path: Path) -> None:
    """1. A stream runs. 2. Another request of the key is refused. 3. The client leaves. Result: the key is free."""
    service = FakeService(script=Script(endless=True, delay_seconds=0.01))
    async with served(tmp_path, service, settings=SETTINGS, keys=KEYS) as front:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with front.tcp.post(front.url + CHAT, json=body, headers=bearer("one")) as running:
            await running.content.readline()
            assert (await chat(front, bearer("one"))).status == 429
            running.close()
        service.script = Script()
        status = front.app[FRONT].gate.status
        await eventually(lambda: next(each for each in status().data if each.name == "one").running == 0)
        assert (await chat(front, bearer("one"))).status == 200


async def test_requests_that_fail_give_their_place_back(front: Served) -> None:
    for _ in range(3):
        assert (await front.post(CHAT, {}, headers=bearer("one"))).status == 400
    assert (await chat(front, bearer("one"))).status == 200


# -------------------------------------------------------------------------------------------------- management


async def test_management_over_tcp_needs_a_key_of_that_scope(front: Served) -> None:
    assert (await front.get("/llm/runtimes")).status == 401
    refused = await front.get("/llm/runtimes", headers=bearer("app"))
    assert (refused.status, refused.error["code"]) == (403, "permission_denied")
    assert (await front.get("/llm/runtimes", headers=bearer("admin"))).status == 200
    assert (await front.get("/llm/runtimes", headers={"x-api-key": OWNER})).status == 200


async def test_key_of_management_alone_generates_nothing(front: Served) -> None:
    assert (await chat(front, bearer("admin"))).status == 403
    assert (await front.get("/v1/models", headers=bearer("admin"))).status == 200


async def test_management_over_tcp_is_off_by_default(tmp_path: Path) -> None:
    """Not even the best key opens it, and nobody learns that it is there."""
    async with served(tmp_path, keys=KEYS) as front:
        answer = await front.get("/llm/runtimes", headers={"x-api-key": OWNER})
        assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_management_over_tcp_asks_for_a_key_although_nothing_else_does(tmp_path: Path) -> None:
    """Never without one, also where there is none."""
    async with served(tmp_path, settings=SETTINGS) as front:
        assert (await front.get("/llm/runtimes")).status == 401
        assert (await chat(front, {})).status == 200


async def test_keys_are_managed_on_the_unix_socket_alone(front: Served) -> None:
    """Whoever has a key makes no other one."""
    owner = {"x-api-key": OWNER}
    for method, path in (("GET", "/keys"), ("POST", "/keys"), ("DELETE", "/keys/app")):
        async with front.tcp.request(method, front.url + path, json={"name": "x"}, headers=owner) as refused:
            assert refused.status == 404


async def test_pages_manage_nothing_whatever_cors_allows(front: Served) -> None:
    """`*` is for inference: management over TCP takes no Origin but its own."""
    headers = {**bearer("admin"), "Origin": "https://evil.example"}
    refused = await front.get("/llm/runtimes", headers=headers)
    assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")
    own = {**bearer("admin"), "Origin": front.url}
    assert (await front.get("/llm/runtimes", headers=own)).status == 200


async def test_star_never_comes_with_credentials(front: Served) -> None:
    answer = await chat(front, {**bearer("app"), "Origin": "https://page.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    preflight = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with front.tcp.options(front.url + CHAT, headers=preflight) as response:
        assert response.status == 204
        assert "authorization" in response.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_key_lives_from_add_to_revoke(front: Served) -> None:
    """1. Added over the socket: told once. 2. It serves. 3. Revoked: refused at once."""
    made = await front.manage("POST", "/keys", json={"name": "new", "models": ["light"], "rate_per_minute": 100})
    assert (made.status, made.headers["Cache-Control"]) == (201, "no-store")
    text = made.json["key"]
    headers = {"Authorization": f"Bearer {text}"}
    assert (await chat(front, headers, model="smol")).status == 200
    listed = await front.manage("GET", "/keys")
    assert text not in listed.body.decode()
    new = next(one for one in listed.json["data"] if one["name"] == "new")
    assert (new["requests"], new["hint"], new["models"]) == (1, f"…{text[-4:]}", ["light"])
    assert (await front.manage("DELETE", "/keys/new")).status == 200
    assert (await chat(front, headers)).status == 401


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "../x"},
        {"name": "a", "scopes": []},
        {"name": "a", "scopes": ["root"]},
        {"name": "a", "rate_per_minute": 0},
        {"name": "a", "concurrent": 0},
        {"name": "a", "expires_seconds": -1},
        {"name": "a", "models": ["nowhere"]},
        {"name": "a", "surprise": 1},
    ],
)
async def test_keys_that_make_no_sense_are_refused(front: Served, body: dict[str, Any]) -> None:
    assert (await front.manage("POST", "/keys", json=body)).status in {400, 404}


async def test_usage_tells_the_key(front: Served) -> None:
    await chat(front, bearer("app"))
    await asyncio.sleep(0)
    assert [one.key_name for one in front.ended] == ["app"]


# -------------------------------------------------------------------------------------------------- terms


async def test_terms_come_from_headers_and_key(front: Served) -> None:
    """The client is its key, its priority no higher than that allows, its deadline on the daemon's clock."""
    asyncio_now = asyncio.get_running_loop().time()
    await chat(front, {**bearer("meek"), "X-Priority": "high", "X-Request-Timeout": "30", "X-LLMVISOR-Resume": "off"})
    terms = front.service.generations[-1].terms
    assert (terms.client, terms.priority, terms.resume) == ("meek", "low", False)
    assert terms.deadline is not None
    assert 25 < terms.deadline - asyncio_now < 60
    await chat(front, {**bearer("app"), "X-Priority": " HIGH "})
    terms = front.service.generations[-1].terms
    assert (terms.client, terms.priority, terms.deadline, terms.resume) == ("app", "high", None, True)


async def test_clients_without_keys_are_told_apart_by_where_they_come_from(tmp_path: Path) -> None:
    """On this machine each connection is one, over the Unix socket each process."""
    async with served(tmp_path) as front:
        await chat(front, {})
        over_tcp = front.service.generations[-1].terms.client
        await front.manage("POST", CHAT, json={"messages": [{"role": "user", "content": "hi"}]})
        over_unix = front.service.generations[-1].terms.client
        await front.post("/v1/embeddings", {"model": "bge", "input": "a", "user": "ann"})
    assert over_tcp.startswith("127.0.0.1:")
    assert over_unix.startswith("unix")
    assert front.service.encoded[-1].terms.client == "ann"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Priority", "urgent"),
        ("X-Request-Timeout", "soon"),
        ("X-Request-Timeout", "0"),
        ("X-Request-Timeout", "-5"),
        ("X-Request-Timeout", "nan"),
        ("X-Request-Timeout", "inf"),
        ("X-Request-Timeout", "1e9"),
    ],
)
async def test_terms_that_make_no_sense_are_refused(front: Served, name: str, value: str) -> None:
    answer = await chat(front, {**bearer("app"), name: value})
    assert answer.status == 400
    assert name in answer.error["message"]


async def test_deadline_ends_what_no_scheduler_does(tmp_path: Path) -> None:
    """Whatever holds a request up, it is told in time; others go on."""
    service = FakeService(script=Script(gate=asyncio.Event()))
    async with served(tmp_path, service) as front:
        begun = asyncio.get_running_loop().time()
        for path, body in (("/v1/embeddings", {"model": "bge", "input": "a"}), (CHAT, {"messages": MESSAGES})):
            answer = await front.post(path, body, headers={"X-Request-Timeout": "0.05"})
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert asyncio.get_running_loop().time() - begun < 10
        await eventually(lambda: len(service.cancelled) == 2)


async def test_request_without_a_model_goes_to_one_that_its_key_is_for(tmp_path: Path) -> None:
    """The usual answer is the first model, which this key does not see."""
    async with served(tmp_path, keys=[key("plain-only", models=["plain"])]) as front:
        answer = await chat(front, bearer("plain-only"))
    assert (answer.status, answer.headers["X-LLMVISOR-Model"]) == (200, "plain")


async def test_heartbeat_tells_what_a_request_waits_for(tmp_path: Path) -> None:
    """Its place in the queue, in a comment that clients skip."""
    service = FakeService(script=Script(delay_seconds=0.4, waits_for=lambda: "position 3 of 7"))
    settings = HttpSettings(handler_cleanup_seconds=0.2, heartbeat_seconds=0.05)
    async with served(tmp_path, service, settings=settings) as front:
        answer = await chat(front, {}, stream=True)
    assert b": waiting, position 3 of 7\n\n" in answer.body
    assert answer.events[-1] == "[DONE]"
