"""`GET /llm/registry/models`, as `llmctl search` asks it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from tests.support.http_front import Served, served

from llmvisor.control.api import ListAnswer, RegistryModel

MODELS = [
    RegistryModel("huggingface", "o/a", "hf:o/a", likes=3, tags=["gguf"], fits=True, fetched_at="2026-01-01T00:00:00Z"),
    RegistryModel("ollama", "b", "ollama:b", fits=None),
]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as it:
        it.control.registry_models = MODELS
        yield it


async def test_found_models_come_as_a_list(front: Served) -> None:
    """With the Struct that llmctl shares."""
    answer = await front.manage("GET", "/llm/registry/models?q=tiny+llama&registry=ollama&limit=5")
    assert answer.status == 200
    data = msgspec.json.decode(answer.body, type=ListAnswer).data
    assert [msgspec.json.decode(one, type=RegistryModel) for one in data] == MODELS
    assert front.control.searched == [("tiny llama", "ollama", 5)]


async def test_registry_and_limit_need_not_be_said(front: Served) -> None:
    """All registries are asked then, for a page of twenty."""
    assert (await front.manage("GET", "/llm/registry/models")).status == 200
    assert front.control.searched == [("", None, 20)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("registry=cortex", "registry"),
        ("registry=", "registry"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=" + "0" * 8 + "1" + "0" * 5000, "limit"),
        ("q=" + "x" * 257, "q"),
        ("q=a%00b", "q"),
    ],
)
async def test_what_cannot_be_searched_is_refused(front: Served, query: str, param: str) -> None:
    """With the parameter's name, and unasked."""
    answer = await front.manage("GET", f"/llm/registry/models?{query}")
    assert answer.status == 400
    assert answer.error["param"] == param
    assert front.control.searched == []


async def test_port_does_not_answer_it(front: Served) -> None:
    """It is a management path: it answers on the Unix socket alone."""
    assert (await front.get("/llm/registry/models")).status == 404
