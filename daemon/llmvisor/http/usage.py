"""What is written down of each inference request, and `GET /usage`, which sums it up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import msgspec
from aiohttp import web

from llmvisor.control.api import ListAnswer
from llmvisor.errors import InternalError, InvalidRequest
from llmvisor.http.access import API_KEY
from llmvisor.http.answers import ENCODER, json_answer
from llmvisor.http.decode import shown
from llmvisor.http.front import ERROR, FRONT, MODEL, REQUEST_ID
from llmvisor.services.metered import Meter
from llmvisor.store.usage import CANCELLED, SUCCEEDED, USAGE_GROUPS, EndedRequest, UsageGroup

_TASKS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/embed": "embedding",
    "/embed_sparse": "embedding",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/rerank": "rerank",
    "/v1/score": "score",
}
_CLIENT_GONE = 499
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def ended_request(
    request: web.Request, meter: Meter, status: int, *, begun: float, ended: float
) -> EndedRequest | None:
    """What a request that has ended took; None for one that asked no model for anything.

    `status` is its answer's, 499 where the client had gone; `begun` and `ended` in monotonic seconds.
    """
    task, model = _TASKS.get(request.path), request.get(MODEL)
    if task is None or model is None:
        return None
    front = request.app[FRONT]
    first = meter.first_token_at
    return EndedRequest(
        time=front.clock.now().isoformat(),
        request_id=request[REQUEST_ID],
        model=model.name,
        service=model.service,
        tier=model.tier,
        task_type=task,
        key_name=key.name if (key := request.get(API_KEY)) is not None else None,
        prompt_tokens=meter.prompt_tokens,
        cached_tokens=meter.cached_tokens,
        completion_tokens=meter.completion_tokens,
        first_token_ms=None if first is None else (first - begun) * 1000,
        total_ms=(ended - begun) * 1000,
        status=_outcome(request, status),
    )


def forget(_request: EndedRequest) -> None:
    """For a front that writes nothing down."""


def _outcome(request: web.Request, status: int) -> str:
    if status == _CLIENT_GONE:
        return CANCELLED
    error = request.get(ERROR)
    if error is None and status >= 500:
        return InternalError.code
    return error or (SUCCEEDED if status < 400 else f"http_{status}")


async def usage(request: web.Request) -> web.Response:
    """Sums by `group_by` (model, day, service, tier, key; several with commas), `since` a day."""
    group_by = _groups(request.query.get("group_by", ""))
    since = request.query.get("since")
    if since is not None and not _DAY.fullmatch(since):
        raise InvalidRequest(f"since: expected a day such as 2026-01-31, found {shown(since)}", param="since")
    rows = await request.app[FRONT].control.usage(group_by, since=since)
    return json_answer(ListAnswer([msgspec.Raw(ENCODER.encode(row)) for row in rows]))


def _groups(text: str) -> Sequence[UsageGroup]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in USAGE_GROUPS:
            raise InvalidRequest(
                f"group_by: expected of {', '.join(USAGE_GROUPS)}, found {shown(name)}", param="group_by"
            )
    return cast("list[UsageGroup]", names)
