"""`POST /v1/embeddings`: OpenAI's, with BGE-M3's sparse and ColBERT vectors beside the dense one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest
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
from llmvisor.http.vectors import as_base64, as_json, floats, shortened, split, weights
from llmvisor.services.service import EmbeddingRequest
from llmvisor_runtimes.protocol import Embedding, EmbeddingKind


class EmbeddingsRequest(EncodingFields, kw_only=True):
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=limits.embedding_dimensions_max)] | None = None
    """The dense vector is cut to so many and made one of length 1 again."""
    embedding_type: EmbeddingKind | None = None
    return_sparse: bool | None = None
    return_colbert: bool | None = None

    def kinds(self) -> list[EmbeddingKind]:
        """What is wanted, each once. Raises `InvalidRequest`."""
        kinds: list[EmbeddingKind] = [self.embedding_type or "dense"]
        if self.return_sparse and "sparse" not in kinds:
            kinds.append("sparse")
        if self.return_colbert and "colbert" not in kinds:
            kinds.append("colbert")
        if self.dimensions is not None and "dense" not in kinds:
            raise InvalidRequest("dimensions: dense vectors alone can be cut", param="dimensions")
        return kinds


class EmbeddingObject(msgspec.Struct, kw_only=True, omit_defaults=True):
    object: str
    index: int
    embedding: msgspec.Raw | None = None
    sparse_embedding: dict[str, float] | None = None
    """Weight by token id."""
    colbert_embedding: list[msgspec.Raw] | None = None
    """A vector for each token."""


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsTail(msgspec.Struct):
    """What follows the vectors."""

    model: str
    usage: EmbeddingUsage


_DECODER = BodyDecoder(EmbeddingsRequest)
_ENCODER = msgspec.json.Encoder()


async def embeddings(request: web.Request) -> web.Response:
    """Texts → vectors."""
    front = request.app[FRONT]
    asked = await read_struct(request, _DECODER, front.settings)
    inputs, kinds = texts_of(asked.input, "input"), asked.kinds()
    model = await front.model(asked.model, capability="embedding")
    request[MODEL] = model
    with named_as({"input": "input"}, single=isinstance(asked.input, str)):
        embedded = await front.service.embed(
            model.name,
            EmbeddingRequest(
                request_id=request[REQUEST_ID],
                inputs=inputs,
                kinds=kinds,
                truncate=bool(asked.truncate),
                lane=asked.lane(request, len(inputs)),
                terms=asked.terms(request),
                keep_alive_seconds=asked.keep_alive_seconds(),
                cache=cache_use(request.headers),
            ),
        )
    tokens = sum(item.tokens for item in embedded.items)
    tail = _ENCODER.encode(EmbeddingsTail(model.id, EmbeddingUsage(tokens, tokens)))
    body = await join_slices(
        _objects(embedded.items, asked, kinds, model.embedding_dimension),
        begin=b'{"object":"list","data":[',
        end=b"]," + tail[1:],
    )
    return json_bytes_answer(body, encoding_headers(model, embedded))


def _objects(
    items: list[Embedding], asked: EmbeddingsRequest, kinds: list[EmbeddingKind], usual: int | None
) -> Iterator[tuple[bytes | None, int]]:
    """The answer's objects, each with how many numbers it has. Raises `InvalidRequest`, `InternalError`."""
    encode: Callable[[array[float]], msgspec.Raw] = as_base64 if asked.encoding_format == "base64" else as_json
    for index, item in enumerate(items):
        one = EmbeddingObject(object="embedding", index=index)
        if "dense" in kinds:
            values = floats(item.dense)
            one.embedding = encode(shortened(values, asked.dimensions, usual))
        if "sparse" in kinds:
            one.sparse_embedding = weights(item.sparse)
        if "colbert" in kinds:
            one.colbert_embedding = []
            for vector in split(item.colbert, item.colbert_vectors):
                one.colbert_embedding.append(encode(vector))
                yield None, len(vector)
        yield _ENCODER.encode(one), len(item.dense) // 4 + len(item.sparse)
