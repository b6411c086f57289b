"""`/keys`: API keys added, listed, revoked. On the Unix socket alone: no key makes another one."""

from __future__ import annotations

from aiohttp import web

from llmvisor.control.api import KeyRequest
from llmvisor.http.answers import json_answer
from llmvisor.http.body import read_struct
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.front import FRONT

_REQUEST = BodyDecoder(KeyRequest)


async def keys(request: web.Request) -> web.Response:
    return json_answer(request.app[FRONT].gate.status())


async def add_key(request: web.Request) -> web.Response:
    """201 with the key, which is never told again."""
    front = request.app[FRONT]
    asked = await read_struct(request, _REQUEST, front.settings)
    for name in asked.models:
        await front.find(name)
    return json_answer(await front.gate.add(asked), status=201, headers={"Cache-Control": "no-store"})


async def revoke_key(request: web.Request) -> web.Response:
    """With `ask_no_more=true` the port asks for no key any more if this was the last."""
    front = request.app[FRONT]
    ask_no_more = request.query.get("ask_no_more") == "true"
    return json_answer(await front.gate.revoke(request.match_info["name"], ask_no_more=ask_no_more))
