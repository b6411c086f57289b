"""What a bare aiohttp server costs: `handler` parses and answers the same JSON, `proxy PORT` passes it on.

Run as `python -m benchmarks.bare handler PORT` or `python -m benchmarks.bare proxy PORT UPSTREAM_PORT`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import uvloop
from aiohttp import web

HOST = "127.0.0.1"
PATH = "/v1/chat/completions"
ANSWER = {
    "id": "chatcmpl-01a2b3c4d5e6f7a8b9c0d1e2",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "light",
    "system_fingerprint": "mock-0.1.0",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "word"},
            "logprobs": None,
            "finish_reason": "length",
        }
    ],
    "usage": {
        "prompt_tokens": 30,
        "completion_tokens": 1,
        "total_tokens": 31,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
    "timings": {"prompt_ms": 0.1, "predicted_ms": 0.1, "prompt_per_second": 300000.0, "predicted_per_second": 10000.0},
}
"""As long as what the daemon answers."""


class Message(msgspec.Struct):
    role: str
    content: str


class Request(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int | None = None


async def handle(request: web.Request) -> web.Response:
    body = msgspec.json.decode(await request.read(), type=Request)
    assert body.messages
    return web.Response(body=msgspec.json.encode(ANSWER), content_type="application/json")


async def health(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


class Proxy:
    """Passes a POST on and its answer back, over connections that are kept."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._client: aiohttp.ClientSession | None = None

    async def session(self, _app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._client:
            yield

    async def forward(self, request: web.Request) -> web.Response:
        assert self._client is not None
        headers = {"Content-Type": request.headers["Content-Type"]}
        body = await request.read()
        async with self._client.post(self._upstream + request.path, data=body, headers=headers) as answer:
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)


def proxy(upstream_port: int) -> web.Application:
    passing = Proxy(f"http://{HOST}:{upstream_port}")
    app = web.Application()
    app.cleanup_ctx.append(passing.session)
    app.router.add_post(PATH, passing.forward)
    app.router.add_get("/health", health)
    return app


def handler() -> web.Application:
    app = web.Application()
    app.router.add_post(PATH, handle)
    app.router.add_get("/health", health)
    return app


async def serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    application = handler() if sys.argv[1] == "handler" else proxy(int(sys.argv[3]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner_:
        runner_.run(serve(application, int(sys.argv[2])))
