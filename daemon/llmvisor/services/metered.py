"""What requests take, counted where they pass: tokens, and when the first came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Self

from llmvisor.clock import Clock
from llmvisor.services.before import Before
from llmvisor.services.service import (
    CacheState,
    Embedded,
    EmbeddingRequest,
    Generation,
    Scored,
    ScoringRequest,
    Service,
    Stream,
)
from llmvisor_runtimes.protocol import Delta, Done


class Meter:
    """What one request has taken so far, over all of its prompts."""

    __slots__ = ("cached_tokens", "completion_tokens", "first_token_at", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.first_token_at: float | None = None
        """Monotonic seconds."""


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""Of the request that is served: each runs in a task of its own, and hands it on to the tasks that it starts."""


class MeteredService(Before):
    """A service whose requests are counted: see `services.service.Service`."""

    def __init__(self, service: Service, *, clock: Clock) -> None:
        super().__init__(service)
        self._clock = clock

    def generate(self, model: str, generation: Generation) -> Stream:
        stream = self._service.generate(model, generation)
        meter = METER.get()
        return stream if meter is None else MeteredStream(stream, meter, self._clock)

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        answer = await self._service.embed(model, request)
        if (meter := METER.get()) is not None:
            meter.prompt_tokens += sum(item.tokens for item in answer.items)
        return answer

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        answer = await self._service.score(model, request)
        if (meter := METER.get()) is not None:
            meter.prompt_tokens += answer.tokens
        return answer


class MeteredStream:
    """A generation that is counted: see `services.service.Stream`. One that is left counts what has come."""

    def __init__(self, stream: Stream, meter: Meter, clock: Clock) -> None:
        self._stream = stream
        self.waits_for = stream.waits_for
        self._steps: AsyncIterator[Sequence[Delta]] | None = None
        self._meter = meter
        self._clock = clock
        self._tokens = 0

    @property
    def queue_ms(self) -> float:
        return self._stream.queue_ms

    @property
    def load_ms(self) -> float:
        return self._stream.load_ms

    @property
    def done(self) -> Done | None:
        return self._stream.done

    @property
    def cache(self) -> CacheState:
        return self._stream.cache

    def __aiter__(self) -> Self:
        self._steps = aiter(self._stream)
        return self

    async def __anext__(self) -> Sequence[Delta]:
        assert self._steps is not None
        deltas = await anext(self._steps)
        if self._meter.first_token_at is None and deltas:
            self._meter.first_token_at = self._clock.monotonic()
        for delta in deltas:
            self._tokens += len(delta.tokens)
        return deltas

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        done = self._stream.done
        if done is None:
            self._meter.completion_tokens += self._tokens
        else:
            self._meter.prompt_tokens += done.prompt_tokens
            self._meter.cached_tokens += done.cached_tokens
            self._meter.completion_tokens += done.completion_tokens
        await self._stream.__aexit__(*exc)
