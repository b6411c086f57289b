"""Bugs of the embedding, caching and media paths that were found, and stay fixed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from tests.support import fake_service
from tests.support.fake_service import FakeService
from tests.support.http_front import Served, served

from llmvisor import limits
from llmvisor.config.tree import ModelConfig
from llmvisor.http.openai.media import image_size
from llmvisor.models.catalogue import Catalogue
from llmvisor.routing.names import NamedModel, resolve
from llmvisor.services.local import fingerprint
from llmvisor.services.service import ScoringRequest

CHAT = "/v1/chat/completions"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncGenerator[Served]:
    async with served(tmp_path) as one:
        yield one


async def test_query_longer_than_the_context_is_no_internal_error(tmp_path: Path) -> None:
    """With chunks asked for there is no room for any beside it: the worker tells the numbers."""
    reranker = msgspec.structs.replace(fake_service.RERANKER, n_ctx=64)
    body = {"query": "a " * 600, "documents": ["xy " * 60], "max_chunks_per_doc": 4}
    service = FakeService(statuses=[reranker])
    async with served(tmp_path, service) as front:
        answer = await front.post("/v1/rerank", {"model": reranker.name, **body})
    assert answer.status == 200, answer.json
    (request,) = service.encoded
    assert isinstance(request, ScoringRequest)
    assert request.pairs == [(body["query"], "xy " * 60)]


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
async def test_template_variable_that_no_number_holds_is_refused(front: Served, number: str) -> None:
    """Whether or not the answer could be kept."""
    for temperature in (0, 1):
        text = (
            f'{{"model": "smol", "messages": [{{"role": "user", "content": "x"}}], "temperature": {temperature},'
            f' "chat_template_kwargs": {{"a": {number}}}}}'
        )
        answer = await front.post_bytes(CHAT, text.encode())
        assert (answer.status, answer.error["param"]) == (400, "chat_template_kwargs")


async def test_embedding_dimension_of_the_configuration_holds_where_nobody_says(tmp_path: Path) -> None:
    """A vector is cut to it, a request may say otherwise, and a shorter vector stays whole."""
    for usual, asked, length in ((2, None, 2), (2, 3, 3), (10_000, None, 4)):
        model = msgspec.structs.replace(fake_service.EMBEDDER, embedding_dimension=usual)
        service = FakeService(statuses=[model], dense=lambda _: [1.0, 2.0, 3.0, 4.0])
        async with served(tmp_path, service) as front:
            body = {"model": model.name, "input": "a"} | ({} if asked is None else {"dimensions": asked})
            answer = await front.post("/v1/embeddings", body)
            assert answer.status == 200, answer.json
            assert len(answer.json["data"][0]["embedding"]) == length


def test_model_in_embedding_mode_is_an_embedding_model() -> None:
    """Before anything has loaded it."""
    catalogue = Catalogue({"m": ModelConfig(path="/x.gguf", backend="llamacpp", embedding_mode=True)})
    assert catalogue.type("m") == "embeddings"


def test_name_left_out_is_no_embedding_model_though_it_alone_is_loaded() -> None:
    """A chat goes to a model that writes text."""
    bge = NamedModel("bge", tier="embedding", loaded=True, type="embeddings")
    qwen = NamedModel("qwen")
    assert resolve(None, [bge, qwen]) is qwen


def test_jpeg_of_nothing_but_filling_is_given_up() -> None:
    """Bytes of filling are counted; a real file has its size before that."""
    assert image_size(b"\xff\xd8" + b"\xff" * (limits.jpeg_segments_max + 100)) is None
    frame = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x20" + bytes(20)
    assert image_size(b"\xff\xd8" + b"\xff" * 100 + frame) == (32, 16)


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    """The model's file, and those that its options name; without the file there is none."""
    model, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    options: dict[str, object] = {"adapters": {"a": {"path": str(adapter)}}}
    config = ModelConfig(path=str(model), backend="llamacpp", options=options)
    assert fingerprint(config) == ""
    seen: set[str] = set()
    for path, text in ((model, "1"), (adapter, "1"), (adapter, "12"), (model, "12")):
        path.write_text(text)
        seen.add(fingerprint(config))
    assert len(seen) == 4
    assert "" not in seen
