"""`llmctl embed` and `rerank`."""

from __future__ import annotations

from typing import cast

import msgspec

from llmctl import limits, standard_input
from llmctl.client import decode
from llmctl.errors import DONE
from llmctl.session import Session
from llmctl.table import Cell, Column, table

_NUMBERS_SHOWN = 4
_VECTORS = (Column("TEXT", fold=True), Column("NUMBERS", right=True), Column("BEGINS"))
_SCORES = (Column("SCORE", right=True), Column("DOCUMENT", fold=True))


class _EmbeddingsRequest(msgspec.Struct, omit_defaults=True):
    model: str
    input: list[str]
    dimensions: int | None = None


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _RerankRequest(msgspec.Struct, omit_defaults=True):
    model: str
    query: str
    documents: list[str]
    top_n: int | None = None


class _Place(msgspec.Struct):
    index: int
    score: float


class _Order(msgspec.Struct):
    data: list[_Place]


def embed(session: Session) -> int:
    """A vector for each text: a table on a terminal, a JSON list on each line in a pipe."""
    args = session.args
    texts = standard_input.texts(cast("list[str]", args.text), what="text", example='llmctl embed MODEL "a text"')
    request = _EmbeddingsRequest(cast("str", args.model), texts, cast("int | None", args.dimensions))
    body = session.client.post("/v1/embeddings", request, timeout_seconds=limits.generation_seconds_max)
    if session.json:
        session.out.json(body)
        return DONE
    vectors = [vector.embedding for vector in decode(body, _Vectors).data]
    if session.out.interactive:
        rows = [_vector_row(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        session.out.lines(table(_VECTORS, rows, width=session.out.width, paint=session.out.paint))
    else:
        session.out.lines([msgspec.json.encode(vector).decode() for vector in vectors])
    return DONE


def rerank(session: Session) -> int:
    """The documents, the most relevant first."""
    args = session.args
    example = 'llmctl rerank MODEL "a query" "a document"'
    documents = standard_input.texts(cast("list[str]", args.document), what="document", example=example)
    request = _RerankRequest(cast("str", args.model), cast("str", args.query), documents, cast("int | None", args.top))
    body = session.client.post("/v1/rerank", request, timeout_seconds=limits.generation_seconds_max)
    if session.json:
        session.out.json(body)
        return DONE
    rows = [[Cell(f"{place.score:.4f}"), Cell(documents[place.index])] for place in decode(body, _Order).data]
    session.out.lines(table(_SCORES, rows, width=session.out.width, paint=session.out.paint))
    return DONE


def _vector_row(text: str, vector: list[float]) -> list[Cell]:
    begins = " ".join(f"{number:.4f}" for number in vector[:_NUMBERS_SHOWN])
    return [Cell(text), Cell(str(len(vector))), Cell(f"{begins} …" if len(vector) > _NUMBERS_SHOWN else begins)]
