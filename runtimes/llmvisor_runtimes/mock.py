"""A backend without a model: deterministic text, set delays, and faults on request.

It is what supervision is tested with, and what client programs can be developed against. What it writes is told in
`mock_text`, what goes wrong in `failpoints`; the rest is set with the model's options (`MockOptions`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

import llmvisor_runtimes
from llmvisor_runtimes import faults, limits, mock_text
from llmvisor_runtimes.backend import LoadError, LoadProgressCallback, Progress, RequestError
from llmvisor_runtimes.failpoints import FailpointError, Failpoints, Operation, Passage, in_prompt, parse
from llmvisor_runtimes.mock_encoder import CAPABILITIES, EncoderInputs, MockEncoder
from llmvisor_runtimes.mock_script import script
from llmvisor_runtimes.mock_sequence import MockRequest, MockSequence
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Delta,
    Done,
    Embed,
    Failed,
    Generate,
    InfillPrompt,
    Load,
    Memory,
    ModelInfo,
    Phase,
    Prompt,
    Report,
    Score,
    Step,
    TextPrompt,
    TokenPrompt,
)
from llmvisor_runtimes.structured import Constraint

LOAD_STEPS = 10
_NonNegative = Annotated[float, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class MockOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mock's own options of a model."""

    token_delay_ms: _NonNegative = 0
    """Between two tokens of one choice."""
    prefill_ms_per_token: _NonNegative = 0
    load_seconds: _NonNegative = 0
    tokens_per_step: Annotated[int, msgspec.Meta(ge=1, le=limits.delta_tokens_split)] = 1
    """Tokens that each choice gets in one step."""
    reply_tokens: _Positive | None = None
    """After so many a reply ends by itself; None goes on to `max_tokens`, by default 64."""
    reply: str | None = None
    """What it answers, calls of tools and thoughts in the form that `mock_script` tells; None makes a reply up."""
    n_ctx: _Positive | None = None
    """None takes the model's `n_ctx`."""
    failpoints: str = ""


class MockBackend:
    """See the module; `clock` and `sleep` count in seconds."""

    name = "mock"
    resumes: Literal[True] = True

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.pipes: Pipes | None = None
        self._clock = clock
        self._sleep = sleep
        self._options = MockOptions()
        self._failpoints = Failpoints({})
        self._info: ModelInfo | None = None
        self._n_ctx = 0
        self._slots = 0
        self._requests: dict[int, MockRequest] = {}
        self._encoder = MockEncoder(clock)
        self._active: list[MockSequence] = []
        self._queue: deque[MockSequence] = deque()
        self._cancelled: deque[int] = deque()
        self._paused: set[int] = set()
        self._cached_prompts: deque[bytes] = deque(maxlen=limits.mock_cached_prompts_max)
        self._steps = 0
        self._tokens: int = 0
        self._deltas: list[Delta] = []
        self._done: list[Done] = []
        self._failed: list[Failed] = []

    def version(self) -> str:
        return llmvisor_runtimes.__version__

    # ------------------------------------------------------------------------------------------------------ loading

    def load(self, load: Load, progress: LoadProgressCallback) -> ModelInfo:
        began = self._clock()
        self._options = options = _options(load)
        try:
            self._failpoints = Failpoints(parse(options.failpoints))
        except FailpointError as error:
            raise LoadError(f"options.failpoints: {error}", permanent=True) from error
        self._n_ctx = options.n_ctx or load.options.n_ctx
        self._slots = load.options.parallel
        self._encoder.n_ctx, self._encoder.delay_seconds = self._n_ctx, options.token_delay_ms / 1000
        passage = self._failpoints.begin("load")
        for step in range(LOAD_STEPS):
            progress("load", step, LOAD_STEPS, "steps")
            try:
                self._meet(passage, None)
            except faults.InjectedError as error:
                raise LoadError(str(error), permanent=error.permanent) from error
            if options.load_seconds:
                self._sleep(options.load_seconds / LOAD_STEPS)
        progress("load", LOAD_STEPS, LOAD_STEPS, "steps")
        self._info = self._describe(self._clock() - began)
        return self._info

    def _describe(self, load_seconds: float) -> ModelInfo:
        return ModelInfo(
            architecture="mock",
            parameters=0,
            quantization="none",
            context_length=self._n_ctx,
            n_ctx=self._n_ctx,
            slots=self._slots,
            vocabulary=mock_text.VOCABULARY,
            capabilities=["chat", "completions", "tokenize", "tools", "structured_output", *CAPABILITIES],
            memory=Memory(),
            load_seconds=load_seconds,
            backend=self.name,
            backend_version=self.version(),
        )

    def close(self) -> None:
        self._once("close", None)

    # -------------------------------------------------------------------------------------------------------- text

    def tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:  # noqa: ARG002 - it has no special tokens
        self._once("tokenize", prompt)
        if isinstance(prompt, TokenPrompt):
            return prompt.tokens
        if isinstance(prompt, InfillPrompt):
            raise RequestError("unsupported_operation", "the mock cannot fill in the middle", "suffix")
        text = prompt.text if isinstance(prompt, TextPrompt) else mock_text.render(prompt)
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        self._once("detokenize", None)
        pieces = _pieces(tokens, "tokens")
        return b"".join(pieces).decode("utf-8", "replace"), pieces

    def apply_template(self, prompt: ChatPrompt) -> str:
        self._once("apply_template", prompt)
        return mock_text.render(prompt)

    # --------------------------------------------------------------------------------------------------- generation

    def constraint(self, request: Generate) -> None:
        """Refuses a grammar that the mock cannot follow; what it can follow its script does."""
        script(request, self._options.reply)

    def generate(self, request: Generate, prompt_tokens: list[int], constraint: Constraint | None = None) -> None:  # noqa: ARG002 - the script keeps to it
        if len(prompt_tokens) >= self._n_ctx:
            message = f"the prompt has {len(prompt_tokens)} tokens, the context {self._n_ctx}"
            raise RequestError("context_length_exceeded", message, "prompt")
        if any(token >= mock_text.FIRST_WORD or token < 0 for token in prompt_tokens):
            _pieces(prompt_tokens, "prompt")
        own = _own_failpoints(request.prompt)
        source = own if own is not None and "generate" in own else self._failpoints
        state = MockRequest(
            request,
            prompt_tokens,
            room=self._n_ctx - len(prompt_tokens),
            reply_tokens=self._options.reply_tokens,
            passage=source.begin("generate") if "generate" in source else None,
            script=script(request, self._options.reply),
        )
        self._requests[request.id] = state
        self._queue.extend(sequence for sequence in state.sequences if not sequence.ended)
        self._end(state)

    def step(self) -> list[Report]:
        self._steps += 1
        if self._cancelled:
            self._end_cancelled()
        if self._queue and len(self._active) < self._slots:
            self._admit()
        now = self._clock()
        paused = self._paused
        ended = False
        for sequence in self._active:
            # A request that failed in this step takes its other choices with it.
            if sequence.due <= now and sequence.request.id not in paused and not sequence.ended:
                self._advance(sequence, now)
                ended = ended or sequence.ended
        if ended:
            self._active = [sequence for sequence in self._active if not sequence.ended]
        return self._collect() + self._encoder.step()

    def trim(self) -> None:
        self._cached_prompts.clear()

    def prepare(self, request: Embed | Score) -> EncoderInputs:
        return self._encoder.prepare(request)

    def encode(self, request: Embed | Score, prepared: object) -> None:
        assert isinstance(prepared, EncoderInputs)
        self._once("embed", TextPrompt("\n".join(prepared.texts)))
        self._encoder.encode(request, prepared)

    def delay_seconds(self) -> float | None:
        waits = [self._generation_wait_seconds(), self._encoder.wait_seconds()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _generation_wait_seconds(self) -> float | None:
        if self._cancelled or self._done or (self._queue and len(self._active) < self._slots):
            return 0.0
        paused = self._paused
        due = [sequence.due for sequence in self._active if sequence.request.id not in paused]
        if not due:
            return None
        soonest = min(due)
        return min(max(soonest - self._clock(), 0.0), limits.mock_step_seconds_max) if soonest else 0.0

    def cancel(self, id: int) -> None:
        self._cancelled.append(id)

    def pause(self, id: int) -> None:
        if id in self._requests:
            self._paused.add(id)

    def resume(self, id: int) -> None:
        self._paused.discard(id)

    def progress(self) -> Progress:
        active = list(self._active)
        busy = [sequence for sequence in active if sequence.request.id not in self._paused]
        phase: Phase = "idle"
        if busy:
            phase = "decode" if any(sequence.began for sequence in busy) else "prefill"
        elif self._encoder.waiting:
            phase = "prefill"
        return Progress(
            step=self._steps,
            phase=phase,
            active=len(active),
            waiting=len(self._queue),
            tokens=self._tokens,
            kv_used=sum(sequence.tokens_held for sequence in active),
        )

    # --------------------------------------------------------------------------------------------------- inside step

    def _admit(self) -> None:
        now = self._clock()
        while self._queue and len(self._active) < self._slots:
            sequence = self._queue.popleft()
            request = sequence.request
            if request.prefill_began is None:
                self._begin_prefill(request, now)
            sequence.due = request.prefill_ends
            self._active.append(sequence)

    def _begin_prefill(self, request: MockRequest, now: float) -> None:
        if request.generate.cache_prompt:
            prompt = mock_text.packed(request.prompt)
            common = [mock_text.common_prefix_tokens(prompt, before) for before in self._cached_prompts]
            # As in a real engine, the last token is computed anyway: the first of the reply comes out of it.
            request.cached_tokens = max(0, min(max(common, default=0), len(request.prompt) - 1))
            if prompt not in self._cached_prompts:
                self._cached_prompts.append(prompt)
        # Of one that goes on, what was written before is computed again too.
        computed = max(sequence.tokens_held for sequence in request.sequences) - request.cached_tokens
        self._tokens += computed
        request.prefill_began = now
        delay_ms = self._options.prefill_ms_per_token
        # 0 is always due, and spares `delay_seconds` a look at the clock.
        request.prefill_ends = now + computed * delay_ms / 1000 if delay_ms or self._options.token_delay_ms else 0.0

    def _advance(self, sequence: MockSequence, now: float) -> None:
        """The tokens of one choice in this step."""
        request = sequence.request
        count = self._options.tokens_per_step
        try:
            if request.passage is not None and not request.passage.free and sequence.left:
                # One at a time, so that what happens after three tokens happens after exactly three.
                count = 1
                self._meet(request.passage, request)
        except faults.InjectedError as error:
            kind = "invalid_value" if error.permanent else "internal_error"
            self._failed.append(Failed(request.id, kind, str(error)))
            self._forget(request)
            return
        before = sequence.left
        if (echo := sequence.echo()) is not None:
            self._deltas.append(echo)
        if not sequence.ended:
            self._deltas.append(sequence.advance(count))
        self._tokens += before - sequence.left
        if request.first_token_at is None:
            request.first_token_at = now
        if sequence.ended:
            self._end(request)
        elif self._options.token_delay_ms:
            sequence.due = max(sequence.due, now - 1) + self._options.token_delay_ms / 1000

    def _end(self, request: MockRequest) -> None:
        """One choice has ended; with the last one the request has."""
        if all(sequence.ended for sequence in request.sequences):
            self._done.append(request.done(self._clock()))
            self._forget(request)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            id = self._cancelled.popleft()
            request = self._requests.get(id)
            if request is None:
                self._encoder.cancel(id)
                continue
            self._deltas.extend(sequence.cancel() for sequence in request.sequences if not sequence.ended)
            self._done.append(request.done(self._clock()))
            self._forget(request)
            self._active = [sequence for sequence in self._active if not sequence.ended]

    def _forget(self, request: MockRequest) -> None:
        for sequence in request.sequences:
            sequence.ended = True
        if any(sequence.request is request for sequence in self._queue):
            self._queue = deque(sequence for sequence in self._queue if sequence.request is not request)
        del self._requests[request.id]
        self._paused.discard(request.id)

    def _collect(self) -> list[Report]:
        """What has come since, to be sent."""
        reports: list[Report] = []
        if self._deltas or self._done:
            reports.append(Step(self._deltas, self._done))
            self._deltas, self._done = [], []
        if self._failed:
            reports.extend(self._failed)
            self._failed = []
        return reports

    # -------------------------------------------------------------------------------------------------------- faults

    def _once(self, operation: Operation, prompt: Prompt | None) -> None:
        """The one step of an operation other than load and generate. Raises `RequestError` for injected errors."""
        own = _own_failpoints(prompt) if prompt is not None else None
        source = own if own is not None and operation in own else self._failpoints
        if operation not in source:
            return
        try:
            self._meet(source.begin(operation), None)
        except faults.InjectedError as error:
            raise RequestError("invalid_value" if error.permanent else "internal_error", str(error)) from error

    def _meet(self, passage: Passage, request: MockRequest | None) -> None:
        """Let happen what is set for the next step."""
        term = passage.fault()
        if term is None:
            return
        if self.pipes is not None and request is not None:
            # The tokens before a fault are the daemon's, whatever the fault does.
            self.pipes.send(self._collect())
        faults.act(term, faults.Scene(self.pipes, request.id if request else None, self._info))


def _options(load: Load) -> MockOptions:
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(load.options.options), type=MockOptions)
    except msgspec.ValidationError as error:
        raise LoadError(f"options of {load.model}: {error}", permanent=True) from error


def _own_failpoints(prompt: Prompt) -> Failpoints | None:
    """The failpoints in a prompt. Raises `RequestError`."""
    try:
        rules = in_prompt(prompt)
    except FailpointError as error:
        param = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        raise RequestError("invalid_value", f"failpoint: {error}", param) from error
    return Failpoints(rules) if rules else None


def _pieces(tokens: Sequence[int], param: str) -> list[bytes]:
    try:
        return [mock_text.piece(token) for token in tokens]
    except ValueError as error:
        raise RequestError("invalid_value", str(error), param) from error
