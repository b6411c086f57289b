"""`GET /health`, `/livez` and `/readyz`: for people, load balancers and probes."""

from __future__ import annotations

import msgspec
from aiohttp import web

from llmvisor.http.answers import json_answer
from llmvisor.http.connections import is_unix
from llmvisor.http.front import FRONT


class ProbeAnswer(msgspec.Struct, omit_defaults=True):
    status: str
    reasons: list[str] = []


async def health(request: web.Request) -> web.Response:
    """503 while unhealthy; `degraded` still serves."""
    answer = request.app[FRONT].control.health()
    if not _may_know(request):
        answer = msgspec.structs.replace(answer, reasons=[])
    return json_answer(answer, status=503 if answer.status == "unhealthy" else 200)


async def livez(_request: web.Request) -> web.Response:
    """The loop answers."""
    return json_answer(ProbeAnswer("ok"))


async def readyz(request: web.Request) -> web.Response:
    """Every model that is to be loaded from the start is ready."""
    missing = list(request.app[FRONT].control.ready())
    reasons = missing if _may_know(request) else []
    return json_answer(ProbeAnswer("not ready" if missing else "ok", reasons), status=503 if missing else 200)


def _may_know(request: web.Request) -> bool:
    """Whether reasons are told, which name models and folders: not to whoever has no key where one is asked for."""
    transport = request.transport
    return not request.app[FRONT].gate.asked or (transport is not None and is_unix(transport))
