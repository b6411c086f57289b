"""`GET /llm/registry/models`: what registries have, as `llmctl install` takes it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from llmvisor import limits
from llmvisor.control.api import ListAnswer
from llmvisor.errors import InvalidRequest
from llmvisor.http.answers import ENCODER, json_answer
from llmvisor.http.decode import shown
from llmvisor.http.front import FRONT
from llmvisor.models.registry import REGISTRIES, RegistryName

_LIMIT_DEFAULT = 20
_LIMIT_DIGITS_MAX = 9


async def registry_models(request: web.Request) -> web.Response:
    """Words in `q`, of one `registry` or both, the first `limit` of them. Takes as long as the registries do."""
    query = request.query
    words = query.get("q", "")
    if len(words) > limits.search_query_chars_max or not words.isprintable():
        raise InvalidRequest(f"q: a text of at most {limits.search_query_chars_max} characters is expected", param="q")
    found = await request.app[FRONT].control.search_registries(
        words, registry=_registry(query.get("registry")), limit=_limit(query.get("limit"))
    )
    return json_answer(ListAnswer([msgspec.Raw(ENCODER.encode(model)) for model in found]))


def _registry(value: str | None) -> RegistryName | None:
    if value is None:
        return None
    for name in REGISTRIES:
        if value == name:
            return name
    expected = ", ".join(REGISTRIES)
    raise InvalidRequest(f"registry: expected one of {expected}, found {shown(value)}", param="registry")


def _limit(value: str | None) -> int:
    if value is None:
        return _LIMIT_DEFAULT
    most = limits.search_results_max
    if not value.isascii() or not value.isdigit() or len(value) > _LIMIT_DIGITS_MAX or not 1 <= int(value) <= most:
        raise InvalidRequest(f"limit: expected 1 to {most}, found {shown(value)}", param="limit")
    return int(value)
