"""Many streamed completions at once, each with all that came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import aiohttp
import msgspec

SECONDS_MAX = 100.0


class Streamed(msgspec.Struct):
    """What a client has of one stream."""

    status: int = 0
    texts: dict[int, str] = {}
    """By choice."""
    finishes: dict[int, list[str]] = {}
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    logprobs: list[tuple[str, float, dict[str, float]]] = []
    """Of the first choice: each token's text, its log-probability, and those of the likeliest."""
    errors: list[Any] = []
    ended: bool = False
    """With `[DONE]`, as the last event."""
    events: int = 0

    @property
    def whole(self) -> bool:
        """Nothing went wrong, and each choice has ended once."""
        return self.ended and not self.errors and all(len(ends) == 1 for ends in self.finishes.values())

    def take(self, event: dict[str, Any]) -> None:
        """One event's JSON."""
        if "error" in event:
            self.errors.append(event["error"])
            return
        self.usage = event.get("usage") or self.usage
        self.timings = event.get("timings") or self.timings
        for choice in event["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            self.finishes.setdefault(index, [])
            if choice["finish_reason"]:
                self.finishes[index].append(choice["finish_reason"])
            if index == 0 and (scores := choice.get("logprobs")):
                triples = zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True)
                self.logprobs += [(token, logprob, dict(top)) for token, logprob, top in triples]


async def stream_all(
    url: str, bodies: Iterable[dict[str, Any]], meanwhile: Callable[[list[Streamed]], Awaitable[None]]
) -> list[Streamed]:
    """Stream these completions, all at once, and do something `meanwhile`, which sees what has come so far."""
    bodies = list(bodies)
    found = [Streamed() for _ in bodies]
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SECONDS_MAX)
    async with (
        aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        for body, streamed in zip(bodies, found, strict=True):
            group.create_task(_stream(session, body, streamed))
        group.create_task(_until_done(meanwhile, found))
    return found


def stream_all_now(
    url: str, bodies: Iterable[dict[str, Any]], meanwhile: Callable[[list[Streamed]], Awaitable[None]]
) -> list[Streamed]:
    """The same on a loop of its own, which leaves nothing behind."""
    return asyncio.run(stream_all(url, bodies, meanwhile))


async def _until_done(meanwhile: Callable[[list[Streamed]], Awaitable[None]], found: list[Streamed]) -> None:
    await meanwhile(found)


async def _stream(session: aiohttp.ClientSession, body: dict[str, Any], streamed: Streamed) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with session.post("/v1/completions", json=asked) as response:
        streamed.status = response.status
        if response.status != 200:
            streamed.errors.append((await response.json())["error"])
            return
        async for data in _events(response):
            streamed.events += 1
            if streamed.ended:
                streamed.errors.append(f"an event after [DONE]: {data}")
            streamed.ended = data == "[DONE]"
            if not streamed.ended:
                streamed.take(json.loads(data))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in response.content:
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n")
