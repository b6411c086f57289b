"""What the registries find: Hugging Face's hub by its API, Ollama's library by its page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

import aiohttp
from huggingface_hub import ModelInfo, constants
from huggingface_hub.utils import (
    build_hf_headers,  # pyright: ignore[reportUnknownVariableType] - a bare `dict` in it
    get_session,
    hf_raise_for_status,
)

from llmvisor.control.api import FoundModel
from llmvisor.fetch import limits
from llmvisor.fetch.failures import FetchProblem
from llmvisor.fetch.hub_problems import hub_problem
from llmvisor.fetch.library_page import Card, UnknownPageError, parameters_of, read_cards
from llmvisor.fetch.plain_text import printable, without_login
from llmvisor.fetch.protocol import Found, SearchRequest
from llmvisor.fetch.repository import is_repository
from llmvisor.fetch.web import get_bytes
from llmvisor.models import limits as model_limits

_EXPANDED: Final = [
    "author",
    "createdAt",
    "downloads",
    "gated",
    "gguf",
    "lastModified",
    "likes",
    "pipeline_tag",
    "safetensors",
    "tags",
    "trendingScore",
]
_FORMATS: Final = ("gguf", "safetensors")
"""What can be served here, by the hub's own tags."""
_BYTES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Of one number in safetensors; what is not here has one byte."""
_TAGS_MAX: Final = 32


async def search(request: SearchRequest, *, session: aiohttp.ClientSession) -> Found:
    """The models that a registry has for these words, the most downloaded first. Raises `FetchProblem`."""
    query = " ".join(request.query.split())
    if len(query) > model_limits.search_query_chars_max or not query.isprintable():
        raise FetchProblem("invalid", "the words to search for are too long, or no text", hint="search for fewer words")
    if request.registry == "ollama":
        return Found(await _search_library(query, request, session))
    return Found(await asyncio.to_thread(_search_hub, query, request))


# --------------------------------------------------------------------------------------------------------- Hugging Face


def _search_hub(query: str, request: SearchRequest) -> list[FoundModel]:
    """Blocks on the network, for each format once."""
    endpoint = request.huggingface_endpoint or constants.ENDPOINT
    found: dict[str, FoundModel] = {}
    try:
        for tag in _FORMATS:
            for info in _listed(endpoint, query, tag, request.limit):
                found.setdefault(info.id, _from_hub(info, endpoint))
    except Exception as error:
        raise hub_problem(error, "the search", endpoint) from error
    return sorted(found.values(), key=lambda model: -(model.downloads or 0))[: request.limit]


def _listed(endpoint: str, query: str, tag: str, limit: int) -> list[ModelInfo]:
    """One page. `HfApi.list_models` would take no time-out, and wait for minutes where the hub is busy."""
    params = {"search": query, "filter": tag, "sort": "downloads", "limit": str(limit), "expand": _EXPANDED}
    headers = build_hf_headers(library_name="llmvisor")
    response = get_session().get(
        f"{endpoint}/api/models", params=params, headers=headers, timeout=limits.registry_seconds_max
    )
    hf_raise_for_status(response)
    listed = [ModelInfo(**described) for described in response.json()[:limit]]
    # A few old ones have no owner in their names, and are the same as others that have.
    return [info for info in listed if is_repository(info.id)]


def _from_hub(info: ModelInfo, endpoint: str) -> FoundModel:
    tags = [printable(tag, 100) for tag in info.tags or []]
    weights = info.safetensors
    gguf = cast("dict[str, object]", info.gguf or {}).get("total")
    parameters = gguf if isinstance(gguf, int) else weights.total if weights else None
    is_gguf = "gguf" in tags
    return FoundModel(
        registry="huggingface",
        id=info.id,
        source=f"hf:{info.id}",
        description=printable(info.pipeline_tag, 100) if info.pipeline_tag else None,
        publisher=info.id.partition("/")[0],
        likes=info.likes,
        trending_score=info.trending_score,
        downloads=info.downloads,
        created_at_ms=round(info.created_at.timestamp() * 1000) if info.created_at else None,
        modified_at=info.last_modified.isoformat() if info.last_modified else None,
        tags=tags[:_TAGS_MAX],
        url=f"{without_login(endpoint)}/{info.id}",
        size=None if is_gguf or not weights else _weights_bytes(weights.parameters),
        parameters=parameters,
        is_gguf=is_gguf,
        is_mlx="mlx" in tags,
        gated=bool(info.gated),
    )


def _weights_bytes(parameters: dict[str, int]) -> int:
    return sum(count * _BYTES.get(type, 1) for type, count in parameters.items())


# --------------------------------------------------------------------------------------------------------------- Ollama


async def _search_library(query: str, request: SearchRequest, session: aiohttp.ClientSession) -> list[FoundModel]:
    library = request.ollama_library.rstrip("/")
    page = await get_bytes(session, f"{library}/search", what="Ollama's library", params={"q": query})
    try:
        cards = read_cards(page.decode(errors="replace"))
    except UnknownPageError as error:
        hint = f"look at {without_login(library)}/search yourself; `llmctl install ollama:NAME` works without a search"
        raise FetchProblem(
            "invalid", "Ollama's library answered with a page that is not understood", hint=hint
        ) from error
    return [_from_library(card, without_login(library)) for card in _served(cards)[: request.limit]]


def _served(cards: Sequence[Card]) -> list[Card]:
    """Without what runs on Ollama's own servers alone."""
    return [card for card in cards if card.sizes or "cloud" not in card.capabilities]


def _from_library(card: Card, library: str) -> FoundModel:
    return FoundModel(
        registry="ollama",
        id=card.id,
        source=f"ollama:{card.id}",
        description=card.description,
        publisher=card.id.partition("/")[0] if "/" in card.id else "library",
        downloads=card.pulls,
        tags=[*card.capabilities, *card.sizes][:_TAGS_MAX],
        url=f"{library}/{card.id}" if "/" in card.id else f"{library}/library/{card.id}",
        # Of several sizes nobody says which one is `latest`.
        parameters=parameters_of(card.sizes[0]) if len(card.sizes) == 1 else None,
        is_gguf=True,
    )
