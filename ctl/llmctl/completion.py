"""`POST /v1/chat/completions`, streamed: requests out, text in. The Structs hold what llmctl reads of OpenAI's."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import msgspec

from llmctl import limits
from llmctl.client import Client, decode
from llmctl.errors import CtlError
from llmvisor.control.api import ErrorBody

COMPLETIONS_PATH = "/v1/chat/completions"


class Message(msgspec.Struct):
    role: str
    content: str


class StreamOptions(msgspec.Struct):
    include_usage: bool = True


class ChatRequest(msgspec.Struct, omit_defaults=True):
    """What is asked for; settings that are None are the model's own."""

    model: str
    messages: list[Message]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int


class Timings(msgspec.Struct):
    predicted_per_second: float | None = None
    prompt_per_second: float | None = None


class Chunk(msgspec.Struct):
    """One event of the stream; an `error` ends it."""

    model: str = ""
    choices: list[Choice] = []
    usage: Usage | None = None
    timings: Timings | None = None
    error: ErrorBody | None = None


class Statistics:
    """What `--stats` and `/stats` tell of one answer."""

    def __init__(self, *, now: float) -> None:
        self._began = now
        self._first: float | None = None
        self._last = now
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self.finish_reason: str | None = None

    def saw_text(self, *, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._last = now

    def text(self) -> str:
        """`42 tokens, 35.1 tok/s, first after 0.21 s`."""
        parts: list[str] = []
        tokens = self.usage.completion_tokens if self.usage else None
        if tokens is not None:
            parts.append(f"{tokens} token{'' if tokens == 1 else 's'}")
        if (speed := self._speed(tokens)) is not None:
            parts.append(f"{speed:.1f} tok/s")
        if self._first is not None:
            parts.append(f"first after {self._first - self._began:.2f} s")
        if self.finish_reason == "length":
            parts.append("cut at the limit of tokens")
        return ", ".join(parts)

    def _speed(self, tokens: int | None) -> float | None:
        if self.timings is not None and self.timings.predicted_per_second:
            return self.timings.predicted_per_second
        if tokens is None or self._first is None or self._last <= self._first:
            return None
        return (tokens - 1) / (self._last - self._first)


class Answer:
    """An answer that is still coming; iterating gives its text, piece by piece."""

    def __init__(self, events: Iterator[bytes], *, asked_at: float) -> None:
        self._events = events
        self.statistics = Statistics(now=asked_at)

    def __iter__(self) -> Iterator[str]:
        """Raises `CtlError` for an error in the stream, and for one that is cut."""
        for data in self._events:
            if data == b"[DONE]":
                return
            chunk = decode(data, Chunk)
            if chunk.error is not None:
                raise CtlError(chunk.error.message)
            yield from self._texts(chunk)
        raise CtlError("the answer was cut off before its end")

    def _texts(self, chunk: Chunk) -> Iterator[str]:
        statistics = self.statistics
        statistics.usage = chunk.usage or statistics.usage
        statistics.timings = chunk.timings or statistics.timings
        for choice in chunk.choices:
            statistics.finish_reason = choice.finish_reason or statistics.finish_reason
            if text := choice.delta.content or choice.delta.reasoning_content:
                statistics.saw_text(now=time.monotonic())
                yield text


@contextmanager
def answering(client: Client, request: ChatRequest) -> Generator[Answer]:
    """Ask, and stream the answer. Leaving the block early cancels the generation."""
    request.stream = True
    request.stream_options = StreamOptions()
    silence = client.timeout_seconds or limits.generation_silence_seconds_max
    body = msgspec.json.encode(request)
    asked_at = time.monotonic()
    with client.stream("POST", COMPLETIONS_PATH, body=body, silence_seconds_max=silence) as events:
        yield Answer((event.data for event in events), asked_at=asked_at)
