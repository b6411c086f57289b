"""`/v1/models`, the tokenizer's paths, and health."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Model
from tests.support.fake_control import TIME
from tests.support.http_front import Served, served

from llmvisor.control.api import HealthAnswer


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        yield it


async def test_list_has_each_model_once_with_openais_fields_and_ours(front: Served) -> None:
    """By id, in the order of configuration; aliases and tiers are not listed."""
    answer = (await front.get("/v1/models")).json
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["light/smol", "plain", "embedding/bge"]
    for model in answer["data"]:
        Model.model_validate(model, strict=True)
    assert answer["data"][0] == {
        "id": "light/smol",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "llmvisor-light",
        "state": "loaded",
        "tier": "light",
        "type": "llm",
        "context_length": 8192,
        "max_model_len": 4096,
        "capabilities": ["chat", "completions", "tokenize"],
        "size": 98_000_000,
        "loaded_at": "2026-01-01T00:00:00Z",
    }
    assert answer["data"][1]["owned_by"] == "llmvisor"


@pytest.mark.parametrize("name", ["light/smol", "smol", "tiny", "light", "light%2Fsmol"])
async def test_one_model_is_found_by_every_name(front: Served, name: str) -> None:
    """Id (with its slash, encoded or not), name, alias, tier."""
    assert (await front.get(f"/v1/models/{name}")).json["id"] == "light/smol"


async def test_unknown_model_is_404(front: Served) -> None:
    """With the code that clients look for."""
    answer = await front.get("/v1/models/no/such")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_openai_client_lists_and_retrieves(front: Served) -> None:
    """The official client reads both."""
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["light/smol", "plain", "embedding/bge"]
        assert (await client.models.retrieve("light/smol")).owned_by == "llmvisor-light"


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [97, 98]),
        ({"text": "ab"}, [97, 98]),
        ({"prompt": "ab"}, [1, 97, 98]),
        ({"content": "ab", "add_special": True}, [1, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"content": ""}, []),
    ],
    ids=repr,
)
async def test_tokenize_reads_llamacpps_and_vllms_requests(
    front: Served, body: dict[str, Any], tokens: list[int]
) -> None:
    """One answer that both kinds of client understand."""
    answer = await front.post("/tokenize", body)
    assert answer.json == {"tokens": tokens, "count": len(tokens), "max_model_len": 4096, "token_strs": None}


async def test_tokenize_shows_pieces(front: Served) -> None:
    """A part of a character is bytes, as llama.cpp has it; vLLM's strings on request."""
    answer = await front.post("/tokenize", {"content": "aé", "with_pieces": True, "return_token_strs": True})
    assert answer.json["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
    ]
    assert answer.json["token_strs"] == ["a", "\ufffd", "\ufffd"]


async def test_tokenize_takes_a_conversation(front: Served) -> None:
    """The tokens of what the template makes of it."""
    messages = [{"role": "user", "content": "hi"}]
    answer = await front.post("/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert bytes(answer.json["tokens"]) == b"<user>hi"


@pytest.mark.parametrize("body", [{}, {"content": "a", "prompt": "b"}, {"content": 5}, {"messages": []}], ids=repr)
async def test_tokenize_needs_exactly_one_input(front: Served, body: dict[str, Any]) -> None:
    """None, two or a wrong one is 400."""
    assert (await front.post("/tokenize", body)).status == 400


async def test_detokenize_gives_text_back(front: Served) -> None:
    """Under llama.cpp's name and vLLM's."""
    assert (await front.post("/detokenize", {"tokens": [97, 98]})).json == {"content": "ab", "prompt": "ab"}
    for tokens in ([-1], ["a"], 5, [2**31]):
        assert (await front.post("/detokenize", {"tokens": tokens})).status == 400


async def test_apply_template_shows_what_the_model_reads(front: Served) -> None:
    """With or without the start of an answer."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    assert (await front.post("/apply-template", body)).json == {"prompt": "<user>hi<assistant>"}
    body["add_generation_prompt"] = False
    assert (await front.post("/apply-template", body)).json == {"prompt": "<user>hi"}


async def test_tokenizer_of_a_model_that_has_none_is_refused(front: Served) -> None:
    """By name, like every other thing that a model cannot do."""
    answer = await front.post("/tokenize", {"model": "bge", "content": "x"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_operation", "model")


@pytest.mark.parametrize(("status", "code"), [("healthy", 200), ("degraded", 200), ("unhealthy", 503)])
async def test_health_is_503_only_when_unhealthy(front: Served, status: str, code: int) -> None:
    """A degraded daemon still serves."""
    front.control.health_answer = HealthAnswer(
        status=status, timestamp=TIME, reasons=[] if code == 200 else ["draining"]
    )
    for answer in (await front.get("/health"), await front.manage("GET", "/health")):
        assert answer.status == code
        assert answer.json["status"] == status
        assert answer.json["timestamp"] == TIME


async def test_probes_tell_live_from_ready(front: Served) -> None:
    """Live as long as the loop answers; ready once nothing is missing, and what is missing is named."""
    assert (await front.get("/livez")).status == 200
    assert (await front.get("/readyz")).json == {"status": "ok"}
    front.control.missing.append("smol is loading")
    answer = await front.get("/readyz")
    assert (answer.status, answer.json["reasons"]) == (503, ["smol is loading"])
    assert (await front.get("/livez")).status == 200
