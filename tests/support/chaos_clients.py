"""Clients of a daemon under chaos: each asks for something whose whole answer it knows, and checks every piece."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from llmvisor_runtimes.mock_text import Reply

Json = dict[str, Any]

ANSWER_SECONDS_MAX = 90.0
"""Longer than this nobody waits, whatever happens meanwhile."""
REFUSALS = {"queue_full", "insufficient_memory", "model_loading"}
"""What a client may be told instead of an answer: come again."""


class BrokenPromise(AssertionError):
    """An answer that is not what was promised."""


class Refused(Exception):
    """Told to come again, before anything had come."""


class Clients:
    """Clients that ask without end until they are told to stop; the first broken promise is kept."""

    def __init__(self, url: Callable[[], str], seed: int) -> None:
        self._url = url
        self._random = random.Random(seed)
        self._stop = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self.broken: list[str] = []
        self.ended: Counter[str] = Counter()
        """Requests by how they ended."""
        self.longest_seconds: dict[str, float] = {}
        """The longest that one waited for its whole answer, by kind."""
        self.under_way = 0
        self._vectors: dict[str, list[float]] = {}

    async def run(self, counts: dict[str, int]) -> None:
        """So many clients of each kind, until `stop`; each ends what it has begun."""
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "stream": self.numbered_stream,
            "whole": self.numbered_choices,
            "slow": self.slow_reader,
            "vanishing": self.vanishing,
            "llama": lambda: self.real_stream("llama"),
            "mlx": lambda: self.real_stream("mlx"),
            "embed": self.embedding,
            "poison": self.poison,
        }
        # One connection for each request: none is lost with a connection that is being closed for idleness.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session,
            asyncio.TaskGroup() as group,
        ):
            for kind, count in counts.items():
                for _ in range(count):
                    group.create_task(self._client(kind, kinds[kind]))

    def stop(self) -> None:
        self._stop.set()

    async def _client(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            begun = loop.time()
            self.under_way += 1
            try:
                await ask()
                self.ended[kind] += 1
            except Refused as refused:
                self.ended[f"{kind}: {refused}"] += 1
                await asyncio.sleep(0.2)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a broken promise
                self.broken.append(f"{kind}: {type(error).__name__}: {error}")
                self._stop.set()
            finally:
                self.under_way -= 1
            self.longest_seconds[kind] = max(self.longest_seconds.get(kind, 0.0), loop.time() - begun)
            await asyncio.sleep(self._random.random() * 0.3)

    # ------------------------------------------------------------------------------------------------- what they ask

    async def numbered_stream(self, pause_seconds: float = 0.0) -> None:
        """The mock numbers its tokens: a gap or a repeat shows."""
        prompt, count = self._prompt(), self._random.randint(5, 120)
        body = {"model": "mock", "prompt": prompt, "max_tokens": count, "temperature": 0}
        await self._check_stream(body, count, expected(prompt, count), pause_seconds)

    async def slow_reader(self) -> None:
        await self.numbered_stream(pause_seconds=0.02)

    async def real_stream(self, model: str) -> None:
        """As many tokens as asked for."""
        count = self._random.randint(8, 24)
        body = {"model": model, "prompt": f"Story {self._prompt()}: once", "max_tokens": count, "ignore_eos": True}
        await self._check_stream(body, count, None)

    async def numbered_choices(self) -> None:
        """Two choices, as a whole."""
        prompt, count = self._prompt(), self._random.randint(5, 60)
        body = {"model": "mock", "prompt": prompt, "max_tokens": count, "n": 2, "temperature": 1, "seed": 7}
        answer = await self._whole("/v1/completions", body)
        texts = [choice["text"] for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]
        require(texts == [expected(prompt, count, seed=7 + index) for index in (0, 1)], f"the choices are {texts}")
        require(answer["usage"]["completion_tokens"] == 2 * count, f"usage {answer['usage']} of 2 x {count}")

    async def embedding(self) -> None:
        """The same text has the same vector, whoever computes it."""
        text = f"text {self._random.randint(0, 20)}"
        answer = await self._whole("/v1/embeddings", {"model": "mock", "input": [text, self._prompt()]})
        vectors = [item["embedding"] for item in answer["data"]]
        require(len(vectors) == 2, f"{len(vectors)} vectors of 2 texts")
        require(self._vectors.setdefault(text, vectors[0]) == vectors[0], f"another vector of {text!r}")

    async def vanishing(self) -> None:
        """Leaves in the middle."""
        body = {"model": "mock", "prompt": self._prompt(), "max_tokens": 100, "stream": True}
        leave_after = self._random.randint(0, 20)
        async with self._post("/v1/completions", body) as response:
            await self._refusal(response)
            async for _ in events(response):
                leave_after -= 1
                if leave_after < 0:
                    return

    async def poison(self) -> None:
        """A request that ends each worker that takes it is ended itself."""
        await asyncio.sleep(self._random.random() * 10)
        prompt = f"[[failpoint: generate=2*token->kill(11)]] {self._prompt()}"
        try:
            answer = await self._whole("/v1/completions", {"model": "victim", "prompt": prompt, "max_tokens": 50})
        except BrokenPromise as told:
            require("poison_request" in str(told), str(told))
        else:
            raise BrokenPromise(f"a poisonous request was answered: {answer}")

    # ------------------------------------------------------------------------------------------------------ how

    def _prompt(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def _post(self, path: str, body: Json) -> Any:
        assert self._session is not None
        return self._session.post(f"{self._url()}{path}", json=body)

    async def _refusal(self, response: aiohttp.ClientResponse) -> None:
        """Raises `Refused` where a client is told to come again, `BrokenPromise` for any other error."""
        if response.status == 200:
            return
        error = (await response.json())["error"]
        if response.status == 503 and error["code"] in REFUSALS:
            require("Retry-After" in response.headers, f"no Retry-After with {error}")
            raise Refused(error["code"])
        raise BrokenPromise(f"{response.status} {error}")

    async def _whole(self, path: str, body: Json) -> Json:
        async with self._post(path, body) as response:
            await self._refusal(response)
            return await response.json()

    async def _check_stream(self, body: Json, count: int, text: str | None, pause_seconds: float = 0.0) -> None:
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        finishes: list[str] = []
        usage: Json | None = None
        done = False
        async with self._post("/v1/completions", asked) as response:
            await self._refusal(response)
            async for data in events(response):
                require(not done, "an event after [DONE]")
                done = data == "[DONE]"
                if done:
                    continue
                event = json.loads(data)
                if (error := event.get("error")) is not None:
                    if not pieces and error["code"] in REFUSALS:
                        raise Refused(f"{error['code']} after a heartbeat")
                    raise BrokenPromise(f"after {len(pieces)} pieces: {error}")
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    pieces.append(choice["text"])
                    finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
        require(done, "the stream ended without [DONE]")
        require(finishes == ["length"], f"finished {finishes}")
        require(usage is not None and usage["completion_tokens"] == count, f"usage {usage} of {count} tokens")
        require(text is None or "".join(pieces) == text, f"not the text: {''.join(pieces)!r} instead of {text!r}")


def expected(prompt: str, count: int, seed: int | None = None) -> str:
    """What the mock writes for a prompt."""
    return Reply(list(prompt.encode()), seed).run(0, count)[0]


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The data of each server-sent event."""
    async for line in response.content:
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise BrokenPromise(message)
