"""The requests of one model that have not ended yet, and where each of a worker's reports belongs."""

from __future__ import annotations

import msgspec

from llmvisor.services.service import Generation
from llmvisor.supervision.stream import Answer, Call, GenerationStream, Request, failure
from llmvisor_runtimes.protocol import Failed, Generate, ProtocolViolation, Sampling, Step


class Arrival(msgspec.Struct, frozen=True):
    """When a request came, and whether the model was loaded then."""

    at: float
    model_ready: bool


class RequestTable:
    """Requests by id. A request is waiting until it is granted, then running until the worker has let go of it."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._waiting: dict[int, Arrival] = {}
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

    def granted(self, request_id: int) -> Arrival:
        return self._waiting.pop(request_id)

    def waits(self, request_id: int) -> bool:
        return request_id in self._waiting

    def leave(self, request_id: int) -> bool:
        """Whoever asked is gone; what the worker still sends is dropped. False if that was known."""
        if request_id in self._leaving:
            return False
        self._leaving.add(request_id)
        return True

    def remove(self, request_id: int) -> Request | None:
        self._waiting.pop(request_id, None)
        self._leaving.discard(request_id)
        return self._requests.pop(request_id, None)

    def route(self, report: Step | Failed | Answer) -> list[int]:
        """Hand a report to its requests, and give the ids of those that it ends.

        Raises `ProtocolViolation` for an id or a choice that is not running, which a worker can only have made up.
        """
        match report:
            case Step():
                return self._step(report)
            case Failed():
                self._running(report.id).fail(failure(report))
            case _:
                call = self._running(report.id)
                if not isinstance(call, Call):
                    raise ProtocolViolation(f"an answer for the generation {report.id}")
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

    def _generation(self, request_id: int) -> GenerationStream:
        request = self._running(request_id)
        if not isinstance(request, GenerationStream):
            raise ProtocolViolation(f"a delta for the call {request_id}")
        return request

    def _running(self, request_id: int) -> Request:
        request = self._requests.get(request_id)
        if request is None or request_id in self._waiting:
            raise ProtocolViolation(f"a report for the unknown request {request_id}")
        return request


def generate_command(request_id: int, generation: Generation, defaults: Sampling, max_tokens: int | None) -> Generate:
    """The frame of a generation, the model's own defaults filled in."""
    return Generate(
        id=request_id,
        request_id=generation.request_id,
        prompt=generation.prompt,
        sampling=generation.sampling.over(defaults),
        n=generation.n,
        max_tokens=max_tokens if generation.max_tokens is None else generation.max_tokens,
        stop=generation.stop,
        logprobs=generation.logprobs,
        echo=generation.echo,
        ignore_eos=generation.ignore_eos,
        cache_prompt=generation.cache_prompt,
    )
