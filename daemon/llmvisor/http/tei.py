"""`POST /embed`, `/embed_sparse` and `/rerank` as text-embeddings-inference has them: lists, without names around.

A `model` may be named as everywhere else; otherwise the one that does it is meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.control.api import ModelStatus
from llmvisor.errors import UnsupportedOperation
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.cache_control import cache_use
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.encoding import (
    EmbeddingInput,
    EncodingFields,
    encoding_headers,
    join_slices,
    json_bytes_answer,
    named_as,
    texts_of,
)
from llmvisor.http.front import FRONT, MODEL, REQUEST_ID
from llmvisor.http.rerank import Cutting, RerankFields, rank
from llmvisor.http.vectors import as_json, floats, shortened, weights
from llmvisor.services.service import Embedded, EmbeddingRequest
from llmvisor_runtimes.protocol import Embedding, EmbeddingKind

Direction = Literal["left", "right", "Left", "Right"]


class EmbedRequest(EncodingFields, kw_only=True):
    inputs: EmbeddingInput
    truncation_direction: Direction | None = None
    normalize: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=limits.embedding_dimensions_max)] | None = None


class SparseRequest(EncodingFields, kw_only=True):
    inputs: EmbeddingInput
    truncation_direction: Direction | None = None


class SparseValue(msgspec.Struct):
    index: int
    """The token's id."""
    value: float


class TeiRerankRequest(RerankFields, kw_only=True):
    texts: list[str]
    truncation_direction: Direction | None = None
    return_text: bool | None = None


class TeiRank(msgspec.Struct, omit_defaults=True):
    index: int
    score: float
    text: str | None = None


_EMBED = BodyDecoder(EmbedRequest)
_SPARSE = BodyDecoder(SparseRequest)
_RERANK = BodyDecoder(TeiRerankRequest)


async def embed(request: web.Request) -> web.Response:
    """Texts → a list of vectors, also for one text."""
    asked = await read_struct(request, _EMBED, request.app[FRONT].settings)
    if asked.normalize is False:
        raise UnsupportedOperation("normalize: vectors come with length 1", param="normalize")
    embedded, model = await _embedded(request, asked, "dense")
    body = await join_slices(
        _vectors(embedded.items, asked.dimensions, model.embedding_dimension), begin=b"[", end=b"]"
    )
    return json_bytes_answer(body, encoding_headers(model, embedded))


async def embed_sparse(request: web.Request) -> web.Response:
    """Texts → lists of token ids with their weights."""
    asked = await read_struct(request, _SPARSE, request.app[FRONT].settings)
    embedded, model = await _embedded(request, asked, "sparse")
    answer = [
        [SparseValue(int(token), weight) for token, weight in weights(dict(sorted(item.sparse.items()))).items()]
        for item in embedded.items
    ]
    return json_answer(answer, headers=encoding_headers(model, embedded))


async def rerank(request: web.Request, body: bytes) -> web.Response:
    """`/rerank` with `texts`: a list of places, best first."""
    asked = _RERANK.decode(body)
    _check_direction(asked)
    ranking = await rank(request, asked, asked.texts, field="texts", cutting=Cutting(truncate=bool(asked.truncate)))
    answer = [TeiRank(one.index, one.score, one.text if asked.return_text else None) for one in ranking.ranked]
    return json_answer(answer, headers=dict(ranking.headers))


async def _embedded(
    request: web.Request, asked: EmbedRequest | SparseRequest, kind: EmbeddingKind
) -> tuple[Embedded, ModelStatus]:
    front = request.app[FRONT]
    _check_direction(asked)
    inputs = texts_of(asked.inputs, "inputs")
    model = await front.model(asked.model, capability="embedding")
    request[MODEL] = model
    with named_as({"input": "inputs"}, single=isinstance(asked.inputs, str)):
        embedded = await front.service.embed(
            model.name,
            EmbeddingRequest(
                request_id=request[REQUEST_ID],
                inputs=inputs,
                kinds=[kind],
                truncate=bool(asked.truncate),
                lane=asked.lane(request, len(inputs)),
                terms=asked.terms(request),
                keep_alive_seconds=asked.keep_alive_seconds(),
                cache=cache_use(request.headers),
            ),
        )
    return embedded, model


def _check_direction(asked: EmbedRequest | SparseRequest | TeiRerankRequest) -> None:
    """Raises `UnsupportedOperation`."""
    if asked.truncate and asked.truncation_direction in {"left", "Left"}:
        raise UnsupportedOperation(
            "truncation_direction: texts are cut at their end (right)", param="truncation_direction"
        )


def _vectors(items: list[Embedding], asked: int | None, usual: int | None) -> Iterator[tuple[bytes, int]]:
    for item in items:
        values = floats(item.dense)
        yield bytes(as_json(shortened(values, asked, usual))), len(values)
