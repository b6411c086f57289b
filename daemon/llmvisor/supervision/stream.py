"""Requests that run in a worker, seen from both sides: fed by the runtime actor, read by whoever asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar

import msgspec

from llmvisor import limits
from llmvisor.errors import (
    ContextLengthExceeded,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
    LlmvisorError,
    ModelLoadFailed,
    ModelLoading,
    ModelUnavailable,
    ModelUnloaded,
    PoisonRequest,
    QueueFull,
    RequestTimeout,
    RuntimeCrashed,
    ShuttingDown,
    UnsupportedOperation,
)
from llmvisor.services.service import CacheState
from llmvisor.supervision.scheduling.effects import RefusalKind, Refuse
from llmvisor_runtimes.protocol import (
    Command,
    Delta,
    Done,
    Failed,
    FinishReason,
    Generate,
    Pause,
    Resume,
    Resumed,
    Text,
    Tokens,
)

T = TypeVar("T")

_FAILURES: dict[str, type[LlmvisorError]] = {
    "invalid_value": InvalidRequest,
    "context_length_exceeded": ContextLengthExceeded,
    "unsupported_operation": UnsupportedOperation,
    "template_error": InvalidRequest,
    "internal_error": InternalError,
}


Answer = Tokens | Text
"""What ends a `Call`."""

_REFUSALS: dict[RefusalKind, type[LlmvisorError]] = {
    "queue_full": QueueFull,
    "shutting_down": ShuttingDown,
    "model_loading": ModelLoading,
    "model_load_failed": ModelLoadFailed,
    "model_unavailable": ModelUnavailable,
    "insufficient_memory": InsufficientMemory,
    "runtime_crashed": RuntimeCrashed,
    "unloaded": ModelUnloaded,
    "poison_request": PoisonRequest,
    "timeout": RequestTimeout,
}


def refusal_error(model: str, refusal: Refuse) -> LlmvisorError:
    """The error that the scheduler's refusal of a request stands for."""
    hint = f"`llmctl restart {model}` tries it again" if refusal.kind == "model_unavailable" else None
    message = f"{model}: {refusal.reason}"
    return _REFUSALS[refusal.kind](message, hint=hint, retry_after_seconds=refusal.retry_after_seconds)


def poison_error(model: str, reason: str, seconds: float) -> PoisonRequest:
    """The error of a request that ends the workers it runs in; its like is refused for so long."""
    hint = f"change it, or ask again in {seconds:.0f} s; `llmctl postmortem {model}` shows the crashes"
    return PoisonRequest(f"{model}: {reason}", hint=hint)


def failure(report: Failed) -> LlmvisorError:
    """The error that a worker's `Failed` stands for."""
    return _FAILURES[report.kind](report.message, param=report.param)


class Request(Protocol):
    """What the runtime actor knows of a request."""

    id: int
    kind: str
    """For people: generate, embed, score, call."""
    asked: object
    """What was asked, for its digest."""
    progress: int
    """Grows with all that a worker has brought of it."""
    queue_ms: float
    """Waited for a place; set once it is granted."""
    load_ms: float
    """Of that, waited for the model to load."""
    ran_ms: float
    """That workers had it which are gone."""

    def command(self) -> Command | None:
        """What to send once it is granted; None where holding the model was all it wanted."""
        ...

    def sent(self) -> None:
        """The worker has its command."""
        ...

    def suspend(self) -> None:
        """The worker that had it is gone; it begins again, or goes on, in the next one."""
        ...

    def fail(self, error: LlmvisorError) -> None:
        """It ends with this error. Without effect after its end."""
        ...


class _Sent:
    """What has been sent of one choice."""

    __slots__ = ("finish", "tokens", "tool_call_ids")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.finish: FinishReason | None = None
        self.tool_call_ids: list[str] = []

    def take(self, delta: Delta) -> None:
        """A delta that ends the choice, or brings more of its tool calls."""
        self.finish = delta.finish
        self.tool_call_ids += [call.id for call in delta.tool_calls if call.id is not None]

    def resumed(self) -> Resumed:
        return Resumed(self.tokens.copy(), self.finish, self.tool_call_ids.copy())


class GenerationStream:
    """A generation under way: see `services.service.Stream`.

    Deltas wait in a buffer for the reader. When it grows the worker is told to pause this one request, so that a slow
    reader costs nobody else anything.
    """

    kind = "generate"

    def __init__(
        self,
        id: int,
        *,
        choices: int,
        command: Callable[[], Generate],
        send: Callable[[Command], None],
        leave: Callable[[int], None],
        asked: object = None,
    ) -> None:
        self.id = id
        self.asked = asked
        self.choices = choices
        self.progress = 0
        self.queue_ms = 0.0
        self.load_ms = 0.0
        self.ran_ms = 0.0
        self.done: Done | None = None
        self.cache: CacheState = "off"
        self.tokens_sent: list[list[int]] = [[] for _ in range(choices)]
        """Token ids by choice, as far as they have come: what a resumed generation starts from. They are in the buffer
        at least, so they reach the client, and the worker is not asked for them again."""
        self.waits_for: Callable[[], str] = str
        """See `services.service.Stream`; the actor says how."""
        self._sent = [_Sent(tokens) for tokens in self.tokens_sent]
        self._begin = command
        self._command: Generate | None = None
        self._loaded_as: object = None
        self._runs = False
        self._resumed = 0
        self._send = send
        self._leave = leave
        self._buffer: list[Delta] = []
        self._error: LlmvisorError | None = None
        self._paused = False
        self._arrival: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------------------------------------ the actor's side

    def push(self, delta: Delta) -> None:
        """Take in what the worker sent."""
        tokens = delta.tokens
        self.tokens_sent[delta.index] += tokens
        self.progress += len(tokens)
        if delta.finish is not None or delta.tool_calls:
            self._sent[delta.index].take(delta)
        self._buffer.append(delta)
        waiting = len(self._buffer)
        if waiting > limits.stream_pause_deltas and not self._paused:
            self._paused = True
            self._tell(Pause(self.id))
        elif waiting > limits.stream_deltas_max:
            # The pause did not help, or its reader is gone for good: end this request and keep nothing of it.
            self._buffer.clear()
            self.fail(RuntimeCrashed("the client reads too slowly for its generation"))
            self._leave(self.id)
        self._notify()

    def enter(self, loaded_as: object) -> None:
        """A worker is to take it that has loaded this. Raises `RuntimeCrashed` where it cannot go on with that."""
        if loaded_as != self._loaded_as and self._command is not None and self._begun:
            raise RuntimeCrashed("the worker ended in the middle of this text, and the model is another one now")
        self._loaded_as = loaded_as

    def command(self) -> Generate:
        """See `Request`."""
        if self._command is None or not self._begun:
            self._command = self._begin()
            return self._command
        return msgspec.structs.replace(self._command, resumed=[sent.resumed() for sent in self._sent])

    @property
    def _begun(self) -> bool:
        """Whether anything has been sent."""
        return self.progress > 0 or any(sent.finish is not None or sent.tool_call_ids for sent in self._sent)

    def sent(self) -> None:
        self._runs = True
        if self._paused:
            self._tell(Pause(self.id))

    def suspend(self) -> None:
        self._runs = False
        self._resumed += 1

    def _tell(self, command: Command) -> None:
        """A worker that does not have the request yet knows nothing of it."""
        if self._runs:
            self._send(command)

    def finish(self, done: Done) -> None:
        if self._resumed:
            predicted_ms = done.predicted_ms + self.ran_ms
            done = msgspec.structs.replace(done, predicted_ms=predicted_ms, resumed=self._resumed)
        self.done, self._runs = done, False
        self._notify()

    def fail(self, error: LlmvisorError) -> None:
        if self.done is None and self._error is None:
            self._error, self._runs = error, False
            self._notify()

    def _notify(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # ------------------------------------------------------------------------------------------------ the reader's side

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        while True:
            if self._buffer:
                batch, self._buffer = self._buffer, []
                if self._paused:
                    self._paused = False
                    self._tell(Resume(self.id))
                yield batch
            elif self._error is not None:
                raise self._error
            elif self.done is not None:
                return
            else:
                self._arrival = asyncio.get_running_loop().create_future()
                await self._arrival

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.done is None and self._error is None:
            self._leave(self.id)


class Awaited(Generic[T]):
    """A request whose result comes as a whole, to one who awaits it."""

    kind = "call"

    def __init__(self, id: int, *, leave: Callable[[int], None], asked: object = None) -> None:
        self.id = id
        self.asked = asked
        self.progress = 0
        self.queue_ms = 0.0
        self.load_ms = 0.0
        self.ran_ms = 0.0
        self._leave = leave
        self._result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def sent(self) -> None:
        """Nothing comes of that."""

    def suspend(self) -> None:
        """It is asked again as a whole."""

    def succeed(self, result: T) -> None:
        """It ends with this result. Without effect after its end."""
        if not self._result.done():
            self._result.set_result(result)

    def fail(self, error: LlmvisorError) -> None:
        if not self._result.done():
            self._result.set_exception(error)

    async def result(self) -> T:
        """What it gave. Raises an `LlmvisorError`; whoever is cancelled here leaves the request."""
        try:
            return await self._result
        finally:
            if self._result.cancelled():
                self._leave(self.id)
            elif self._result.done():
                self._result.exception()  # seen, also where whoever asked was cancelled just before


class Call(Awaited[Answer | None]):
    """A request with one answer: tokenize and the like, or (without a command) the model's being loaded."""

    def __init__(self, id: int, *, command: Command | None, leave: Callable[[int], None]) -> None:
        super().__init__(id, leave=leave, asked=command)
        self._command = command

    def command(self) -> Command | None:
        return self._command

    def answer(self, report: Answer | None) -> None:
        self.succeed(report)
