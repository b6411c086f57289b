"""`POST /v1/rerank` and `/rerank`, `/v2/rerank` in Cohere's shape, and `/v1/score` in vLLM's."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http import tei
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_body
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.encoding import EncodingFields, encoding_headers, named_as
from llmvisor.http.front import FRONT, MODEL
from llmvisor.http.rerank import Cutting, DocumentText, Ranked, Ranking, RerankFields, check_count, rank, score
from llmvisor.http.vectors import checked_scores

Top = Annotated[int, Meta(ge=1)]
Texts = str | Annotated[list[str], Meta(min_length=1)]


class RerankRequest(RerankFields, kw_only=True):
    documents: list[str | DocumentText]
    top_k: Top | None = None
    top_n: Top | None = None
    """The same by Cohere's name."""
    return_documents: bool | None = None
    max_chunks_per_doc: Annotated[int, Meta(ge=1, le=limits.rerank_chunks_max)] | None = None
    """A long document is cut into so many chunks at most, and its best one counts."""
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=limits.prompt_tokens_max)] | None = None
    """Cohere's: what a document has beyond is left away."""

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def top(self) -> int | None:
        """Raises `InvalidRequest`."""
        if self.top_k is not None and self.top_n is not None and self.top_k != self.top_n:
            raise InvalidRequest("top_n: is another name of top_k, and says something else", param="top_n")
        return self.top_k or self.top_n

    async def ranking(self, request: web.Request, *, truncate: bool) -> Ranking:
        """Raises an `LlmvisorError`."""
        top = self.top()
        ranking = await rank(
            request,
            self,
            self.texts(),
            field="documents",
            cutting=Cutting(self.max_chunks_per_doc, self.max_tokens_per_doc, truncate),
        )
        return msgspec.structs.replace(ranking, ranked=ranking.ranked[:top])


class ScoreRequest(EncodingFields, kw_only=True):
    text_1: Texts
    text_2: Texts
    raw_scores: bool | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """One text with each of the others, or each with its own. Raises `InvalidRequest`."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) == 1:
            first *= len(second)
        if len(first) != len(second):
            raise InvalidRequest(
                f"text_2: expected as many texts as text_1 has ({len(first)}), found {len(second)}", param="text_2"
            )
        check_count(second, "text_2")
        return list(zip(first, second, strict=True))


class RankData(msgspec.Struct, omit_defaults=True):
    """As Infinity has it."""

    index: int
    score: float
    document: str | None = None


class RankResult(msgspec.Struct, omit_defaults=True):
    """As Cohere and Jina have it."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RankUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class RerankAnswer(msgspec.Struct, kw_only=True):
    """Both of the shapes that clients read."""

    object: Literal["list"] = "list"
    id: str
    model: str
    data: list[RankData]
    results: list[RankResult]
    usage: RankUsage


class ApiVersion(msgspec.Struct):
    version: str


class BilledUnits(msgspec.Struct):
    search_units: int


class TokenCounts(msgspec.Struct):
    input_tokens: int


class CohereMeta(msgspec.Struct):
    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: TokenCounts


class CohereAnswer(msgspec.Struct):
    id: str
    results: list[RankResult]
    meta: CohereMeta


class ScoreData(msgspec.Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreAnswer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: RankUsage


class _Form(msgspec.Struct):
    """Which form a body of `/rerank` has."""

    texts: msgspec.Raw = msgspec.Raw()


_RERANK = BodyDecoder(RerankRequest)
_SCORE = BodyDecoder(ScoreRequest)
_FORM = BodyDecoder(_Form)


async def rerank(request: web.Request) -> web.Response:
    """Documents, ordered by how well they answer a query."""
    front = request.app[FRONT]
    return await _answer(request, await read_body(request, front.settings))


async def rerank_any(request: web.Request) -> web.Response:
    """The same, or TEI's form where the body has `texts`."""
    body = await read_body(request, request.app[FRONT].settings)
    if bytes(_FORM.decode(body).texts) not in {b"", b"null"}:
        return await tei.rerank(request, body)
    return await _answer(request, body)


async def _answer(request: web.Request, body: bytes) -> web.Response:
    asked = _RERANK.decode(body)
    ranking = await asked.ranking(request, truncate=bool(asked.truncate))
    shown = asked.return_documents is not False
    answer = RerankAnswer(
        id=request.app[FRONT].ids.new("rerank-"),
        model=ranking.model.id,
        data=[RankData(one.index, one.score, one.text if shown else None) for one in ranking.ranked],
        results=_results(ranking.ranked, shown=shown),
        usage=RankUsage(ranking.tokens, ranking.tokens),
    )
    return json_answer(answer, headers=dict(ranking.headers))


async def rerank_cohere(request: web.Request) -> web.Response:
    """In the shape of Cohere's second version alone. As there, long documents are cut without being asked."""
    front = request.app[FRONT]
    asked = _RERANK.decode(await read_body(request, front.settings))
    ranking = await asked.ranking(request, truncate=asked.truncate is not False)
    meta = CohereMeta(ApiVersion("2"), BilledUnits(search_units=1), TokenCounts(ranking.tokens))
    results = _results(ranking.ranked, shown=bool(asked.return_documents))
    return json_answer(CohereAnswer(front.ids.new("rerank-"), results, meta), headers=dict(ranking.headers))


async def score_pairs(request: web.Request) -> web.Response:
    """How well texts answer others, pair by pair."""
    front = request.app[FRONT]
    asked = _SCORE.decode(await read_body(request, front.settings))
    pairs = asked.pairs()
    model = await front.model(asked.model, capability="rerank")
    request[MODEL] = model
    with named_as({"pairs": "text_2", "documents": "text_2", "query": "text_1"}):
        scored = await score(request, asked, model, pairs, truncate=bool(asked.truncate), field="text_2")
    scores = checked_scores(scored.scores, raw=bool(asked.raw_scores))
    answer = ScoreAnswer(
        id=front.ids.new("score-"),
        created=front.unix_seconds(),
        model=model.id,
        data=[ScoreData(index=index, score=one) for index, one in enumerate(scores)],
        usage=RankUsage(scored.tokens, scored.tokens),
    )
    return json_answer(answer, headers=encoding_headers(model, scored))


def _results(ranked: list[Ranked], *, shown: bool) -> list[RankResult]:
    return [RankResult(one.index, one.score, DocumentText(one.text) if shown else None) for one in ranked]
