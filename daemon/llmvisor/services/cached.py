"""The response cache before a service: answers that are known, and one run for the same question asked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from llmvisor.cache.flight import Flights, FollowingStream, ReplayedStream, StreamFlight, until
from llmvisor.cache.key import embedding_key, generation_key, scoring_key
from llmvisor.cache.store import ResponseCache
from llmvisor.errors import ModelNotFound
from llmvisor.services.before import Before
from llmvisor.services.service import (
    CacheUse,
    Embedded,
    EmbeddingRequest,
    Generation,
    ModelIdentity,
    Scored,
    ScoringRequest,
    Service,
    Stream,
    Terms,
)
from llmvisor_runtimes.protocol import Delta, Done

T = TypeVar("T", Embedded, Scored)


class _Answer(msgspec.Struct, array_like=True):
    """A generation as it is kept."""

    deltas: list[Delta]
    done: Done


_ENCODER = msgspec.msgpack.Encoder()
_ANSWERS = msgspec.msgpack.Decoder(_Answer)


def _shared(terms: Terms) -> Terms:
    """Of a run that several may share: each of them has a deadline of its own."""
    return terms if terms.deadline is None else msgspec.structs.replace(terms, deadline=None)


def _run_of(key: str, terms: Terms) -> str:
    """Whose run is shared: one that is to end with an error where its worker does is not for the others."""
    return key if terms.resume else f"{key} without resume"


class CachedService(Before):
    """A service whose answers are kept: see `services.service.Service`."""

    def __init__(self, service: Service, cache: ResponseCache, *, touch: Callable[[], None]) -> None:
        """`touch` is called for each request, which may reach no model."""
        self._touch = touch
        super().__init__(service)
        self._cache = cache
        self._generations: dict[str, StreamFlight] = {}
        self._embeddings: Flights[Embedded] = Flights()
        self._scorings: Flights[Scored] = Flights()

    def generate(self, model: str, generation: Generation) -> Stream:
        self._touch()
        identity = self.identity(model)
        key = generation_key(model, identity, generation)
        if key is None:
            return self._service.generate(model, generation)
        if generation.cache == "use":
            flight = self._generations.get(key)
            if flight is not None:
                self._cache.coalesced()
                return FollowingStream(flight, "coalesced", generation.terms.deadline)
            if (known := self._known(key, _ANSWERS)) is not None:
                return ReplayedStream(known.deltas, known.done)
        shared = msgspec.structs.replace(generation, terms=_shared(generation.terms))
        flight = StreamFlight(
            self._service.generate(model, shared), lambda ended: self._landed(model, identity, key, ended)
        )
        if generation.terms.resume:  # others are not to share an error that this one asks for
            self._generations[key] = flight
        return FollowingStream(flight, "miss", generation.terms.deadline)

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        self._touch()
        identity = self.identity(model)
        key = embedding_key(model, identity, request)
        if key is None:
            return await self._service.embed(model, request)
        if (known := self._answered(key, request.cache, self._embeddings, Embedded)) is not None:
            return known
        run = _run_of(key, request.terms)
        joined = run in self._embeddings
        shared = msgspec.structs.replace(request, terms=_shared(request.terms))
        async with until(request.terms.deadline):
            answer = await self._embeddings.join(run, lambda: self._service.embed(model, shared))
        return self._kept(key, answer, joined=joined, keep=self._is_still(model, identity))

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        self._touch()
        identity = self.identity(model)
        key = scoring_key(model, identity, request)
        if key is None:
            return await self._service.score(model, request)
        if (known := self._answered(key, request.cache, self._scorings, Scored)) is not None:
            return known
        run = _run_of(key, request.terms)
        joined = run in self._scorings
        shared = msgspec.structs.replace(request, terms=_shared(request.terms))
        async with until(request.terms.deadline):
            answer = await self._scorings.join(run, lambda: self._service.score(model, shared))
        return self._kept(key, answer, joined=joined, keep=self._is_still(model, identity))

    def _landed(self, model: str, identity: ModelIdentity, key: str, flight: StreamFlight) -> None:
        """A generation has ended: it is kept if it ended well."""
        if self._generations.get(key) is flight:
            del self._generations[key]
        if flight.done is None or any(delta.finish == "cancelled" for delta in flight.deltas):
            return
        if self._is_still(model, identity):
            done = msgspec.structs.replace(flight.done, resumed=0)  # whoever gets it again saw no worker end
            self._cache.put(key, _ENCODER.encode(_Answer(flight.deltas, done)))

    def _is_still(self, model: str, identity: ModelIdentity) -> bool:
        """Whether the model is the one that was asked: what waits while it is replaced is answered by the next one."""
        try:
            return self.identity(model) == identity
        except ModelNotFound:
            return False

    def _known(self, key: str, decoder: msgspec.msgpack.Decoder[_Answer]) -> _Answer | None:
        value = self._cache.get(key)
        try:
            return None if value is None else decoder.decode(value)
        except msgspec.MsgspecError:
            return None  # written by another version

    def _answered(self, key: str, use: CacheUse, flights: Flights[T], answer: type[T]) -> T | None:
        if use != "use" or key in flights:
            return None
        value = self._cache.get(key)
        try:
            return None if value is None else msgspec.msgpack.decode(value, type=answer)
        except msgspec.MsgspecError:
            return None

    def _kept(self, key: str, answer: T, *, joined: bool, keep: bool) -> T:
        if joined:
            self._cache.coalesced()
            return msgspec.structs.replace(answer, cache="coalesced")
        if keep:
            self._cache.put(
                key, _ENCODER.encode(msgspec.structs.replace(answer, cache="hit", queue_ms=0.0, load_ms=0.0))
            )
        return msgspec.structs.replace(answer, cache="miss")
