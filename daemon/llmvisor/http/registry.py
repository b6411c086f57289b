"""`GET /llm/registry/models`: what registries have, as `llmctl install` takes it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from llmvisor.control.api import ListAnswer
from llmvisor.errors import InvalidRequest
from llmvisor.http.answers import ENCODER, json_answer
from llmvisor.http.front import FRONT
from llmvisor.http.query import count, one_of
from llmvisor.models import limits
from llmvisor.models.registry import REGISTRIES

_LIMIT_DEFAULT = 20


async def registry_models(request: web.Request) -> web.Response:
    """Words in `q`, of one `registry` or both, the first `limit` of them. Takes as long as the registries do."""
    query = request.query
    words = query.get("q", "")
    if len(words) > limits.search_query_chars_max or not words.isprintable():
        raise InvalidRequest(f"q: a text of at most {limits.search_query_chars_max} characters is expected", param="q")
    limit = count(query.get("limit"), "limit", limits.search_results_max, default=_LIMIT_DEFAULT)
    found = await request.app[FRONT].control.search_registries(
        words, registry=one_of(query.get("registry"), REGISTRIES, "registry"), limit=limit
    )
    return json_answer(ListAnswer([msgspec.Raw(ENCODER.encode(model)) for model in found]))
