"""The requests of one model that have not ended yet, and where each of a worker's reports belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from llmvisor.errors import UnsupportedOperation
from llmvisor.services.service import EmbeddingRequest, Generation, ScoringRequest, Terms
from llmvisor.supervision.encoding import EmbeddingCall, ScoringCall
from llmvisor.supervision.stream import Answer, Call, GenerationStream, Request, failure
from llmvisor.supervision.workers.postmortem import Inside
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Embeddings,
    Failed,
    Generate,
    ProtocolViolation,
    Sampling,
    Scores,
    Step,
)

_ENCODER = msgspec.msgpack.Encoder()

WorkReport = Step | Failed | Answer | Embeddings | Scores
"""What a worker says of requests."""


class Arrival(msgspec.Struct, frozen=True):
    """When a request came, and whether the model was loaded then."""

    at: float
    model_ready: bool


class RequestTable:
    """Requests by id. A request is waiting until it is granted, then running until the worker has let go of it."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._waiting: dict[int, Arrival | None] = {}
        """None where a worker had the request already: its waiting was measured then."""
        self._granted: dict[int, tuple[float, int]] = {}
        """When the worker got it, and how far it was then."""
        self._leaving: set[int] = set()

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._requests

    def __getitem__(self, request_id: int) -> Request:
        return self._requests[request_id]

    def all(self) -> list[Request]:
        return list(self._requests.values())

    def add(self, request: Request, arrival: Arrival) -> None:
        self._requests[request.id] = request
        self._waiting[request.id] = arrival

    def granted(self, request_id: int, now: float, ready_at: float) -> Request:
        """It runs from now on, and knows how long it waited: for the model too, which was ready at `ready_at`."""
        request, arrival = self._requests[request_id], self._waiting.pop(request_id)
        self._granted[request_id] = (now, request.progress)
        if arrival is not None:
            request.queue_ms = (now - arrival.at) * 1000
            request.load_ms = 0.0 if arrival.model_ready else max(0.0, ready_at - arrival.at) * 1000
        return request

    def suspend(self, request_id: int, now: float) -> bool:
        """The worker is gone, and it waits again. False for one that nobody wants any more."""
        if request_id in self._leaving:
            return False
        request, (granted_at, _) = self._requests[request_id], self._granted.pop(request_id)
        request.ran_ms += (now - granted_at) * 1000
        request.suspend()
        self._waiting[request_id] = None
        return True

    def brought(self, request_id: int) -> int:
        """How far a request that runs has got in this worker."""
        request, granted = self._requests.get(request_id), self._granted.get(request_id)
        return 0 if request is None or granted is None else request.progress - granted[1]

    def progressed(self) -> frozenset[int]:
        """Requests that have brought something in this worker."""
        return frozenset(request_id for request_id in self._granted if self.brought(request_id))

    def inside(self, model: str, now: float) -> list[Inside]:
        """The requests that the worker has, in the order in which it got them."""
        return [
            Inside(
                request_id,
                kind=(request := self._requests[request_id]).kind,
                sha256=digest(model, request.asked),
                seconds=now - granted_at,
                tokens=request.progress,
                tokens_new=self.brought(request_id),
                leaving=request_id in self._leaving,
            )
            for request_id, (granted_at, _) in self._granted.items()
        ]

    def waits(self, request_id: int) -> bool:
        return request_id in self._waiting

    def begun_wait(self) -> bool:
        """Whether a text waits of which a worker has sent something."""
        waiting = (self._requests[request_id] for request_id in self._waiting)
        return any(isinstance(request, GenerationStream) and request.progress for request in waiting)

    def leave(self, request_id: int) -> bool:
        """Whoever asked is gone; what the worker still sends is dropped. False if that was known."""
        if request_id in self._leaving:
            return False
        self._leaving.add(request_id)
        return True

    def remove(self, request_id: int) -> Request | None:
        self._waiting.pop(request_id, None)
        self._granted.pop(request_id, None)
        self._leaving.discard(request_id)
        return self._requests.pop(request_id, None)

    def route(self, report: WorkReport) -> list[int]:
        """Hand a report to its requests, and give the ids of those that it ends.

        Raises `ProtocolViolation` for an id or a choice that is not running, which a worker can only have made up.
        """
        match report:
            case Step():
                return self._step(report)
            case Failed():
                self._running(report.id).fail(failure(report))
            case Embeddings() | Scores():
                return [report.id] if self._encoded(report) else []
            case _:
                call = self._running(report.id)
                if not isinstance(call, Call):
                    raise ProtocolViolation(f"an answer for the request {report.id}, which asked for none")
                call.answer(report)
        return [report.id]

    def _step(self, step: Step) -> list[int]:
        for delta in step.deltas:
            if delta.id not in self._leaving:
                generation = self._generation(delta.id)
                if not 0 <= delta.index < generation.choices:
                    raise ProtocolViolation(f"a delta for choice {delta.index} of the request {delta.id}")
                generation.push(delta)
        for done in step.done:
            self._generation(done.id).finish(done)
        return [done.id for done in step.done]

    def _encoded(self, report: Embeddings | Scores) -> bool:
        """Whether the request has ended with this."""
        call = self._running(report.id)
        if not isinstance(call, EmbeddingCall | ScoringCall):
            raise ProtocolViolation(f"{type(report).__name__} for the request {report.id}, which asked for none")
        if report.id in self._leaving:
            # A request that is cancelled ends with empty embeddings, whatever it asked for.
            return isinstance(report, Scores) or report.last
        if isinstance(call, EmbeddingCall) and isinstance(report, Embeddings):
            return call.take(report)
        if isinstance(call, ScoringCall) and isinstance(report, Scores):
            return call.take(report)
        raise ProtocolViolation(f"{type(report).__name__} for the request {report.id}")

    def _generation(self, request_id: int) -> GenerationStream:
        request = self._running(request_id)
        if not isinstance(request, GenerationStream):
            raise ProtocolViolation(f"a delta for the request {request_id}, which generates nothing")
        return request

    def _running(self, request_id: int) -> Request:
        request = self._requests.get(request_id)
        if request is None or request_id in self._waiting:
            raise ProtocolViolation(f"a report for the unknown request {request_id}")
        return request


def digest(model: str, asked: object) -> str:
    """The SHA-256 of a model and of what is asked of it: prompt and parameters, not who asks, or on what terms."""
    if isinstance(asked, Generation | EmbeddingRequest | ScoringRequest):
        asked = msgspec.structs.replace(asked, request_id="", keep_alive_seconds=None, cache="use", terms=Terms())
    elif isinstance(asked, msgspec.Struct) and hasattr(asked, "id"):
        asked = msgspec.structs.replace(asked, id=0)
    return hashlib.sha256(_ENCODER.encode((model, asked))).hexdigest()


def generate_command(
    request_id: int,
    generation: Generation,
    defaults: Sampling,
    max_tokens: int | None,
    capabilities: Sequence[str] = (),
) -> Generate:
    """The frame of a generation, the model's own defaults filled in.

    Raises `UnsupportedOperation` for images and sounds that a model of these capabilities would never see.
    """
    prompt = generation.prompt
    if (
        isinstance(prompt, ChatPrompt)
        and any(message.media for message in prompt.messages)
        and not {"vision", "audio"} & {*capabilities}
    ):
        message = "this model reads text, no images and no sounds; mmproj in a llamacpp model's options lets it"
        raise UnsupportedOperation(f"messages: {message}", param="messages")
    return Generate(
        id=request_id,
        request_id=generation.request_id,
        prompt=prompt,
        sampling=generation.sampling.over(defaults),
        n=generation.n,
        max_tokens=max_tokens if generation.max_tokens is None else generation.max_tokens,
        stop=generation.stop,
        logprobs=generation.logprobs,
        echo=generation.echo,
        ignore_eos=generation.ignore_eos,
        cache_prompt=generation.cache_prompt,
        grammar=generation.grammar,
        adapters=generation.adapters,
        speculative=generation.speculative,
    )
