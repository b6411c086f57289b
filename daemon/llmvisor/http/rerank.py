"""Scoring documents against a query, whatever the dialect: cutting, scoring, ordering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import InvalidRequest
from llmvisor.http.cache_control import cache_use
from llmvisor.http.chunks import best, chunks
from llmvisor.http.encoding import EncodingFields, encoding_headers, named_as
from llmvisor.http.front import FRONT, MODEL, REQUEST_ID, Front
from llmvisor.http.vectors import checked_scores
from llmvisor.services.service import Scored, ScoringRequest
from llmvisor_runtimes.protocol import TextPrompt

_SPECIAL_TOKENS = 8
"""Left free for what a model puts around a pair: four at most of those known."""
_CHUNK_TOKENS_MIN = 16
"""A query that leaves less is too long to cut documents beside it."""


class DocumentText(msgspec.Struct):
    text: str


class RerankFields(EncodingFields, kw_only=True):
    """What all rerank requests take."""

    query: Annotated[str, Meta(min_length=1)]
    raw_scores: bool | None = None
    """Logits; otherwise a sigmoid makes them 0–1."""


class Cutting(msgspec.Struct, frozen=True):
    """What becomes of long documents."""

    chunks_max: int | None = None
    """Cut into so many chunks at most, the best of which counts. None leaves them whole."""
    tokens_max: int | None = None
    """Of a chunk, where that is less than the model takes."""
    truncate: bool = False
    """What is still too long is cut to what the model takes; otherwise the request is refused."""

    @property
    def needs_tokens(self) -> bool:
        return self.tokens_max is not None or (self.chunks_max is not None and self.chunks_max > 1)

    @property
    def truncates(self) -> bool:
        # Where chunks end is only about right: what is over is cut.
        return self.truncate or self.chunks_max is not None or self.tokens_max is not None


class Ranked(msgspec.Struct, frozen=True):
    """A document's place in the order."""

    index: int
    score: float
    text: str


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The documents, best first."""

    model: ModelStatus
    ranked: list[Ranked]
    tokens: int
    headers: Mapping[str, str]


async def rank(
    request: web.Request,
    asked: RerankFields,
    documents: Sequence[str],
    *,
    field: str,
    cutting: Cutting,
) -> Ranking:
    """Score every document and order them. `field` is what the dialect calls them. Raises an `LlmvisorError`."""
    front = request.app[FRONT]
    check_count(documents, field)
    model = await front.model(asked.model, capability="rerank")
    request[MODEL] = model
    names = {"pairs": field, "documents": field, "prompt": field}
    with named_as(names):
        parts = [[document] for document in documents]
        if cutting.needs_tokens:
            parts = await _cut(front, model, asked.query, documents, cutting)
        pairs = [(asked.query, part) for chunked in parts for part in chunked]
        scored = await score(request, asked, model, pairs, truncate=cutting.truncates, field=field)
    scores = best(checked_scores(scored.scores, raw=bool(asked.raw_scores)), [len(chunked) for chunked in parts])
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    return Ranking(
        model=front.loaded(model),
        ranked=[Ranked(index, scores[index], documents[index]) for index in order],
        tokens=scored.tokens,
        headers=encoding_headers(model, scored),
    )


async def score(
    request: web.Request,
    asked: EncodingFields,
    model: ModelStatus,
    pairs: list[tuple[str, str]],
    *,
    truncate: bool,
    field: str,
) -> Scored:
    """The raw score of each pair. Raises an `LlmvisorError`."""
    if len(pairs) > limits.rerank_pairs_max:
        raise InvalidRequest(
            f"{field}: expected at most {limits.rerank_pairs_max} chunks altogether, found {len(pairs)}", param=field
        )
    if sum(len(query) + len(text) for query, text in pairs) > limits.rerank_pairs_chars_max:
        raise InvalidRequest(
            f"{field}: with the query beside each, they are over {limits.rerank_pairs_chars_max} characters",
            param=field,
        )
    return await request.app[FRONT].service.score(
        model.name,
        ScoringRequest(
            request_id=request[REQUEST_ID],
            pairs=pairs,
            truncate=truncate,
            lane=asked.lane(request, len(pairs)),
            terms=asked.terms(request),
            keep_alive_seconds=asked.keep_alive_seconds(),
            cache=cache_use(request.headers),
        ),
    )


def check_count(documents: Sequence[object], field: str) -> None:
    """Raises `InvalidRequest` for none and for too many."""
    if not 1 <= len(documents) <= limits.rerank_documents_max:
        raise InvalidRequest(
            f"{field}: expected 1 to {limits.rerank_documents_max} texts, found {len(documents)}", param=field
        )


async def _cut(
    front: Front, model: ModelStatus, query: str, documents: Sequence[str], cutting: Cutting
) -> list[list[str]]:
    """Each document in chunks that fit beside the query. Short ones need no tokenizer: no token is under a byte."""
    asked = await front.service.tokenize(model.name, TextPrompt(query), add_special=False, parse_special=False)
    context = front.loaded(model).n_ctx  # as loaded, now that it is
    room = (context or limits.prompt_tokens_max) - len(asked.tokens) - _SPECIAL_TOKENS
    if room < min(_CHUNK_TOKENS_MIN, cutting.tokens_max or _CHUNK_TOKENS_MIN):
        return [[document] for document in documents]
    room = min(room, cutting.tokens_max or room)
    parts: list[list[str]] = []
    for document in documents:
        if len(document.encode()) <= room:
            parts.append([document])
            continue
        tokens = await front.service.tokenize(model.name, TextPrompt(document), add_special=False, parse_special=False)
        parts.append(chunks(document, tokens.pieces, room, cutting.chunks_max or 1))
    return parts
