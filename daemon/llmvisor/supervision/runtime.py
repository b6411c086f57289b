"""One model's worker, its requests and its life, as the rest of the daemon asks for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress

import msgspec

from llmvisor.config.tree import ModelConfig
from llmvisor.errors import LlmvisorError
from llmvisor.services.service import Embedded, EmbeddingRequest, Generation, Scored, ScoringRequest
from llmvisor.supervision.actor import Actor
from llmvisor.supervision.configured import Trial
from llmvisor.supervision.encoding import EmbeddingCall, ScoringCall
from llmvisor.supervision.handover import History, RuntimeHandover
from llmvisor.supervision.requests import generate_command
from llmvisor.supervision.scheduling.effects import Ticket
from llmvisor.supervision.scheduling.state import HAS_WORKER, State
from llmvisor.supervision.status import WAITS_FOR_MEMORY
from llmvisor.supervision.stream import Answer, Call, GenerationStream
from llmvisor.supervision.tickets import ticket_of, waits_for
from llmvisor_runtimes.protocol import Command, Generate, LoadProgress
from llmvisor_runtimes.protocol.commands import SetThreads, Trim


class Runtime(Actor):
    """One model. Every method runs to its end in one go, or says what it waits for."""

    @property
    def latest_config(self) -> ModelConfig:
        """What the next worker is started with."""
        return self._configured.latest

    @property
    def proven_config(self) -> ModelConfig | None:
        """What the model was last loaded with; None where it never was."""
        return self._configured.proven

    def generate(self, generation: Generation) -> GenerationStream:
        """Begin a generation. Whatever goes wrong is raised by iterating over it."""
        request_id = next(self._ids)

        def command() -> Generate:
            able = self.info.capabilities if self.info else []
            return generate_command(request_id, generation, self._configured.sampling, self.config.max_tokens, able)

        stream = GenerationStream(
            request_id,
            choices=generation.n,
            command=command,
            send=self._send,
            leave=self._leave,
            asked=generation,
        )
        stream.waits_for = lambda: waits_for(self._scheduler, request_id, self._facts.progress)
        self._submit(stream, ticket_of(request_id, self._now(), generation))
        return stream

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        """The vectors of texts. Raises an `LlmvisorError`."""
        call = EmbeddingCall(next(self._ids), request, leave=self._leave)
        self._submit(call, ticket_of(call.id, self._now(), request))
        return await call.result()

    async def score(self, request: ScoringRequest) -> Scored:
        """The scores of pairs of texts. Raises an `LlmvisorError`."""
        call = ScoringCall(next(self._ids), request, leave=self._leave)
        self._submit(call, ticket_of(call.id, self._now(), request))
        return await call.result()

    async def call(self, command: Callable[[int], Command] | None) -> Answer | None:
        """One question to the worker, given the id to ask it under; None just waits until the model is loaded.

        Raises an `LlmvisorError`.
        """
        request_id = next(self._ids)
        call = Call(request_id, command=None if command is None else command(request_id), leave=self._leave)
        self._submit(call, Ticket(request_id, 0, self._now()))
        return await call.result()

    def abandon_load(self) -> None:
        """Whoever waited for the load has gone; it ends where nobody else wants it."""
        self._apply(self._scheduler.load_unwanted(self._now()))

    def update(self, config: ModelConfig) -> None:
        """Take other sampling defaults, limits and timeouts; the worker that there is stays."""
        preload = config.preload and not self.latest_config.preload
        if self._configured.update(config):
            self._configure()
        if preload:
            self.load()

    def reconfigure(self, config: ModelConfig, trial: Trial | None = None) -> None:
        """Run like this from the next worker on; the one that there is finishes what runs, and goes.

        With a `trial` it goes back to what it was where the model cannot be loaded so.
        """
        self._configured.plan(config, trial)
        if self.state in HAS_WORKER:
            self.unload()
        else:
            self._adopt()
        self.reset()
        if config.preload or config.pinned or trial is not None:
            self.load()

    def make_way(self) -> None:
        """Finish what runs, and unload, so that another model has the memory; until then it may be told to `stay`."""
        self._apply(self._scheduler.unload_wanted(self._now(), yields=True))

    def stay(self) -> None:
        """The memory is not needed any more: one that makes way still serves on."""
        self._apply(self._scheduler.stay_wanted(self._now()))

    def waits_for_memory(self) -> None:
        """Its load has to wait until others have made room: shown as how far it is."""
        self._facts.progress = LoadProgress(WAITS_FOR_MEMORY, 0, 0, "steps")
        self._publish()

    def trim(self) -> None:
        """Let the worker give up what it only keeps to be faster."""
        self._place.send(Trim())

    def sacrifice(self, reason: str) -> None:
        """End the worker at once for a reason that is none of its own; what it has goes on in the next one."""
        self._apply(self._scheduler.sacrificed(reason))

    @property
    def has_process(self) -> bool:
        """Whether a worker's process runs: a load may wait for memory before there is one."""
        return self._place.worker is not None

    def hand_over(self) -> RuntimeHandover | None:
        """What another run of the daemon needs to go on with the worker; None where none serves at the moment."""
        given = self._place.hand_over() if self.state is State.READY else None
        if given is None or self.info is None:
            return None
        return RuntimeHandover(
            self.name,
            msgspec.msgpack.encode(self.config),
            given,
            self.info,
            next_id=next(self._ids),
            loaded_at=self.loaded_at,
            ready_at=self.ready_at,
            active_at=self.active_at,
            idle_deadline=self._scheduler.idle.deadline,
            keep_alive_seconds=self._scheduler.idle.keep_alive_seconds,
            restarts=self._scheduler.restarts,
            threads=self._setup.cores.threads(self.key),
            confined=self._facts.confined,
        )

    def take_over(self, given: RuntimeHandover) -> None:
        """Serve with the worker of an earlier run, from nothing. Raises OSError where it cannot be had."""
        self._place.take_over(given.worker, self.config)
        self._ids = itertools.count(given.next_id)
        self.loaded_at, self.ready_at, self.active_at = given.loaded_at, given.ready_at, given.active_at
        self._facts.pid, self._facts.info, self._facts.confined = given.worker.pid, given.info, given.confined
        self._loaded_as = self._meaning()
        self._configured.loaded()
        if given.threads is not None:
            self._setup.cores.told(self.key, given.threads)
        self._apply(self._scheduler.taken_over(given))

    def succeed(self, other: Runtime) -> None:
        """Serve the model from here on: its crashes stay known. What was refused for them may be tried again."""
        self.postmortems.take(other.postmortems.all())
        self._scheduler.restarts += other._scheduler.restarts

    def history(self) -> bytes:
        """What is known of its crashes, for another run of the daemon; empty for nothing."""
        history = History(self._quarantine.all(), self.postmortems.all())
        return msgspec.msgpack.encode(history) if history.quarantined or history.postmortems else b""

    def remember(self, history: bytes) -> None:
        """Go on with what an earlier run knew, as far as this version understands it."""
        with suppress(msgspec.MsgspecError, UnicodeError):
            known = msgspec.msgpack.decode(history, type=History)
            self._quarantine.restore(known.quarantined)
            self.postmortems.take(known.postmortems)

    def shutdown(self) -> None:
        """Start nothing any more, let what runs finish, and go."""
        self._apply(self._scheduler.shutdown(self._now()))

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        self._place.send(SetThreads(threads))

    def end_requests(self, error: LlmvisorError) -> None:
        """End everything that is in flight with this error."""
        for request in self._requests.all():
            request.fail(error)
            self._leave(request.id)

    @property
    def wakes_at(self) -> float | None:
        """The monotonic time at which it next looks after its worker and its queue."""
        return self._alarm.due_at

    @property
    def load_is_wanted(self) -> bool:
        """Whether a request or the configuration waits for the model to be loaded."""
        return self._scheduler.load_is_wanted

    @property
    def has_begun_requests(self) -> bool:
        """Whether requests wait that a worker had before."""
        return any(request.ran_ms > 0 for request in self._requests.all())

    @property
    def returns(self) -> bool:
        """Whether it was loaded until its configuration changed, and has not been since."""
        return self._configured.returns

    async def wait_while(self, *states: State) -> State:
        """Wait until the runtime is in none of these states, and give the one that it is in."""
        while self.state in states:
            await self._changed.wait()
        return self.state

    async def wait_unused(self) -> None:
        """Wait until no request waits or runs."""
        while self.in_flight:
            self._unused.clear()
            await self._unused.wait()
