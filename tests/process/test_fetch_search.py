"""What the registries find, through the real huggingface_hub and on the library's page."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import huggingface_hub
import pytest
from tests.support.http_double import Fault
from tests.support.hub_double import HubDouble, Repository
from tests.support.ollama_double import LibraryModel, OllamaDouble

from llmvisor.control.api import FoundModel
from llmvisor.fetch.download import open_session
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.protocol import SearchRequest
from llmvisor.fetch.search import search


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[HubDouble]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubDouble() as double:
        yield double
    huggingface_hub.close_session()


@pytest.fixture
def library() -> Generator[OllamaDouble]:
    with OllamaDouble() as double:
        yield double


async def found(
    query: str, double: HubDouble | OllamaDouble, registry: Literal["huggingface", "ollama"], limit: int = 20
) -> list[FoundModel]:
    request = SearchRequest(query, registry, limit, huggingface_endpoint=double.url, ollama_library=double.url)
    async with open_session() as session:
        return (await search(request, session=session)).models


async def test_hub_finds_what_can_be_served_most_downloaded_first(hub: HubDouble) -> None:
    """GGUF and safetensors, with what the hub says of each."""
    hub.repositories = {
        "o/Qwen-GGUF": Repository({}, downloads=50, likes=7, gguf={"total": 494_000_000, "architecture": "qwen2"}),
        "o/Qwen-MLX": Repository({}, downloads=90, tags=["mlx", "safetensors"], safetensors={"BF16": 1000, "U8": 10}),
        "o/Qwen-gated": Repository({}, downloads=70, tags=["safetensors"], gated="manual"),
        "o/Qwen-onnx": Repository({}, downloads=900, tags=["onnx"]),
        "o/Other-GGUF": Repository({}, downloads=900),
    }
    models = await found("  qwen ", hub, "huggingface")
    assert [model.id for model in models] == ["o/Qwen-MLX", "o/Qwen-gated", "o/Qwen-GGUF"]
    mlx, gated, gguf = models
    assert (mlx.is_mlx, mlx.is_gguf, mlx.size, mlx.parameters) == (True, False, 2010, 1010)
    assert (gated.gated, mlx.gated) == (True, False)
    assert (gguf.source, gguf.publisher, gguf.likes, gguf.trending_score) == ("hf:o/Qwen-GGUF", "o", 7, 7)
    assert (gguf.is_gguf, gguf.parameters, gguf.size) == (True, 494_000_000, None)
    assert gguf.url == f"{hub.url}/o/Qwen-GGUF"
    assert gguf.created_at_ms == 1775037600000
    assert (gguf.modified_at or "").startswith("2026-05-01T10:00:00")


async def test_hub_is_asked_for_no_more_than_wanted(hub: HubDouble) -> None:
    """The limit goes to the hub, and holds for both formats together."""
    hub.repositories = {f"o/m{n}": Repository({}, tags=["gguf", "safetensors"]) for n in range(30)}
    assert len(await found("m", hub, "huggingface", limit=5)) == 5
    assert {one.query["limit"] for one in hub.asked_of("/api/models")} == {"5"}


async def test_library_finds_models_with_what_its_page_says(library: OllamaDouble) -> None:
    """With the marks of the page's own tests, and without."""
    library.library = [
        LibraryModel("qwen3", "Qwen <3> & friends.", "10.5M", ["0.6b", "8b"], ["tools", "thinking"]),
        LibraryModel("someone/qwen-small", "Small.", "950", ["500m"], []),
        LibraryModel("qwen-cloud", "Far away.", "3K", [], ["cloud"]),
        LibraryModel("llama3", "Else.", "1M"),
    ]
    for marked in (True, False):
        library.marked = marked
        first, second = await found("qwen", library, "ollama")
        assert (first.id, first.source, first.downloads) == ("qwen3", "ollama:qwen3", 10_500_000)
        assert first.description == "Qwen <3> & friends."
        assert first.tags == ["tools", "thinking", "0.6b", "8b"]
        assert (first.parameters, first.publisher, first.is_gguf) == (None, "library", True)
        assert (second.source, second.downloads, second.parameters) == ("ollama:someone/qwen-small", 950, 500_000_000)
        assert second.url == f"{library.url}/someone/qwen-small"


async def test_nothing_found_is_no_problem(hub: HubDouble, library: OllamaDouble) -> None:
    """An empty list, from either."""
    assert await found("nothing", hub, "huggingface") == []
    assert await found("nothing", library, "ollama") == []


async def test_page_that_is_not_understood_is_said(library: OllamaDouble) -> None:
    """Instead of an empty list, which would say that there is no such model."""
    library.page = "<html><body>Please enable JavaScript</body></html>"
    with pytest.raises(FetchProblem) as caught:
        await found("x", library, "ollama")
    assert caught.value.kind == "invalid"
    assert f"{library.url}/search" in (caught.value.hint or "")


@pytest.mark.parametrize("registry", ["huggingface", "ollama"])
async def test_busy_registry_is_a_network_problem_with_its_wait(
    hub: HubDouble, library: OllamaDouble, registry: Literal["huggingface", "ollama"]
) -> None:
    """It may pass."""
    double, path = (hub, "/api/models") if registry == "huggingface" else (library, "/search")
    double.faults[path] = [Fault(status=429, headers={"Retry-After": "9"})]
    with pytest.raises(FetchProblem) as caught:
        await found("x", double, registry)
    assert (caught.value.kind, caught.value.retry_after_seconds) == ("network", 9.0)


@pytest.mark.parametrize("query", ["x" * 10_000, "a\0b", "\u202ex"])
async def test_words_that_are_none_are_not_asked_for(hub: HubDouble, query: str) -> None:
    """They are refused before anything is asked."""
    with pytest.raises(FetchProblem) as caught:
        await found(query, hub, "huggingface")
    assert caught.value.kind == "invalid"
    assert hub.asked == []


@pytest.mark.parametrize("registry", ["huggingface", "ollama"])
async def test_login_of_a_registry_is_not_in_what_it_finds(
    hub: HubDouble, library: OllamaDouble, registry: Literal["huggingface", "ollama"]
) -> None:
    """Nor in what is said where it cannot be reached."""
    hub.repositories["o/m"] = Repository({})
    library.library = [LibraryModel("m")]
    double: HubDouble | OllamaDouble = hub if registry == "huggingface" else library
    for port, fails in ((double.url.rpartition(":")[2], False), ("1", True)):
        address = f"http://me:PASS@127.0.0.1:{port}"
        request = SearchRequest("m", registry, huggingface_endpoint=address, ollama_library=address)
        async with open_session() as session:
            if not fails:
                (model,) = (await search(request, session=session)).models
                assert "PASS" not in str(model)
                continue
            with pytest.raises(FetchProblem) as caught:
                await search(request, session=session)
        assert "PASS" not in f"{caught.value.message} {caught.value.hint}"
