"""The engine's loop: admit, read prompts in pieces, decode all together, report.

Prompts are read one piece of one prompt a step, in turn, each into caches of its own; from its last token on a choice
decodes in mlx-lm's `BatchGenerator`, which joins, steps and parts the sequences. It works one token ahead of what it
gives. Choices wait in the order in which they came, get a slot when there is one and room in the context, and keep it
until they end; when the context is full the youngest goes back to waiting and is computed again later.
"""

# pyright: standard
# mlx and mlx-lm ship no complete types.

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from operator import attrgetter

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Progress, RequestError
from llmvisor_runtimes.choice import failure_of
from llmvisor_runtimes.logprobs import token_logprob
from llmvisor_runtimes.mlx.model import MlxModel
from llmvisor_runtimes.mlx.prefixes import PrefixCache
from llmvisor_runtimes.mlx.reading import PromptReader
from llmvisor_runtimes.mlx.sequence import Cache, Choice, Request, make_request
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.protocol import Delta, Done, Failed, Generate, Phase, Report, Step
from llmvisor_runtimes.structured import Constraint

_AGE: Callable[[Choice], int] = attrgetter("age")


class Engine:
    """Generates for many requests at once with one model.

    `generate`, `step` and `delay_seconds` belong to one thread; `cancel`, `pause`, `resume` and `progress` may be
    called from any.
    """

    def __init__(self, model: MlxModel, format: OutputFormat, prefixes: PrefixCache[Cache]) -> None:
        self._format = format
        self._model = model
        self._vocabulary = model.vocabulary
        self._n_ctx = model.n_ctx
        self._slots = model.slots
        self._batch = BatchGenerator(
            model.model,
            completion_batch_size=self._slots,
            prefill_batch_size=self._slots,
            prefill_step_size=1,
            # mlx-lm's own stream is of the device that was the default when it was imported.
            stream=mx.new_thread_local_stream(mx.default_device()),
        )
        self._prompts = PromptReader(model, prefixes, self._batch.stream)
        self._requests: dict[int, Request] = {}
        self._waiting: list[Choice] = []
        self._active: list[Choice] = []
        self._cancelled: set[int] = set()
        self._paused: set[int] = set()
        self._ages = 0
        self._may_admit = False
        """Something has changed since nobody else could be admitted."""
        self._reports: list[Report] = []
        self._deltas: list[Delta] = []
        self._done: list[Done] = []
        self._phase: Phase = "idle"
        self._steps = 0
        self._tokens = 0

    # --------------------------------------------------------------------------------------------- from other threads

    def cancel(self, id: int) -> None:
        """End a request in the next step."""
        if id in self._requests:
            self._cancelled.add(id)

    def pause(self, id: int) -> None:
        if id in self._requests:
            self._paused.add(id)
            self._may_admit = True  # nobody waits for what it computes

    def resume(self, id: int) -> None:
        self._paused.discard(id)
        self._may_admit = True

    def progress(self) -> Progress:
        active = list(self._active)
        return Progress(
            step=self._steps,
            # Where all are paused nothing is due, and standing still is no hang.
            phase="idle" if self.delay_seconds() is None else self._phase,
            active=len(active),
            waiting=len(self._waiting),
            tokens=self._tokens,
            kv_used=sum(len(choice.tokens) for choice in active),
        )

    # ---------------------------------------------------------------------------------------------- the engine's loop

    def generate(self, generate: Generate, prompt: list[int], constraint: Constraint | None = None) -> None:
        """Take a request in. Raises `RequestError` where it can never be served."""
        request = make_request(
            generate,
            prompt,
            n_ctx=self._n_ctx,
            vocabulary=self._vocabulary,
            age=self._ages + 1,
            constraint=constraint,
            format=self._format,
        )
        self._ages += generate.n
        self._waiting += request.choices
        self._requests[request.id] = request
        self._may_admit = True
        self._end_request(request)

    def delay_seconds(self) -> float | None:
        """0 where a step has something to do, None where it has nothing until a call comes."""
        if self._cancelled or self._done or (self._may_admit and self._waiting):
            return 0
        return 0 if any(choice.request.id not in self._paused for choice in list(self._active)) else None

    def step(self) -> list[Report]:
        """Read a piece of a prompt, decode a token of each that decodes, and report what that brought."""
        self._end_cancelled()
        if self._may_admit and self._waiting:
            self._admit()
        running = [choice for choice in self._active if choice.request.id not in self._paused]
        if running:
            self._steps += 1
            self._read([choice for choice in running if choice.unread], alone=all(choice.unread for choice in running))
            for choice in running:
                if choice.uid is None and choice.finish is None and not choice.unread:
                    self._begin(choice)
            self._decode([choice for choice in running if choice.uid is not None])
            self._make_room()
        reports = self._reports
        if self._deltas or self._done:
            reports.append(Step(self._deltas, self._done))
            self._deltas, self._done = [], []
        self._reports = []
        if not self._active:
            self._phase = "idle"
        return reports

    def close(self) -> None:
        """Free what the requests hold."""
        self._batch.close()
        self._prompts.close()

    # ------------------------------------------------------------------------------------------------------ admission

    def _admit(self) -> None:
        """Give slots to those that wait, in order; one that waits for room is never overtaken."""
        self._may_admit = False
        for choice in list(self._waiting):
            if len(self._active) >= self._slots:
                return
            if not choice.wants_token and not choice.echo_due:
                self._deltas.append(choice.nothing_wanted())
                self._end(choice)
                continue
            if choice.request.id in self._paused:
                continue
            spare = limits.admission_spare_tokens * len(self._active)
            if self._active and self._tokens_held() + len(choice.tokens) + spare > self._n_ctx:
                return
            reading = [active for active in self._active if active.unread and active.request.id not in self._paused]
            if self._prompts.begin(choice, reading):
                self._waiting.remove(choice)
                self._active.append(choice)

    def _tokens_held(self) -> int:
        return sum(len(active.tokens) for active in self._active)

    # -------------------------------------------------------------------------------------------------------- prompts

    def _read(self, reading: list[Choice], *, alone: bool) -> None:
        """Compute the next piece of one of these prompts."""
        self._phase = "prefill" if alone else "decode"
        if reading:
            self._tokens += self._prompts.read(reading[self._steps % len(reading)])

    def _begin(self, choice: Choice) -> None:
        """The prompt is computed but for its last token: with it the choice enters the batch."""
        request = choice.request
        self._prompts.share(choice)
        self._may_admit = True
        if choice.echo_due:
            self._deltas.append(choice.echo(request.prompt_logprobs))
        if choice.finish is not None:
            self._end(choice)
            return
        (uid,) = self._batch.insert(
            [choice.tokens[-1:]],
            max_tokens=[choice.tokens_left + 1],  # it never ends by itself
            caches=[choice.cache or self._model.new_cache()],
            all_tokens=[choice.tokens[:-1]],
            samplers=[choice.sampler],
            logits_processors=[choice.processors],
        )
        choice.begin_decoding(uid)
        if all(other.uid is not None for other in request.choices):
            request.prompt_cache = None

    # ------------------------------------------------------------------------------------------------------- decoding

    def _decode(self, decoding: list[Choice]) -> None:
        """One token of each."""
        if not decoding:
            return
        self._take_out([choice for choice in self._active if choice.uid is not None and choice not in decoding])
        by_uid = {choice.uid: choice for choice in decoding}
        _read, responses = self._batch.next()
        self._tokens += len(responses)
        ended: list[Choice] = []
        failed: dict[Choice, Exception] = {}
        for response in responses:
            choice = by_uid[response.uid]
            try:
                self._take(choice, response.token)
            except Exception as error:  # noqa: BLE001 - of one request alone: a parser of its text
                failed[choice] = error
                continue
            if choice.finish is not None:
                ended.append(choice)
        self._take_out(ended, keep=True)
        for choice in ended:
            self._end(choice)
        for choice in decoding:
            error = failed.get(choice) or (choice.mask.error if choice.mask else None)
            if error is not None and choice.request.id in self._requests:
                self._fail(choice.request, failure_of(choice.request.generate.request_id, error))

    def _take(self, choice: Choice, token: int) -> None:
        request = choice.request
        logprob = None
        if choice.raw is not None:
            row = choice.raw.take(len(choice.tokens))
            logprob = token_logprob(row, token, request.generate.logprobs or 0, self._vocabulary)
        complete = choice.mask is not None and choice.mask.complete
        self._deltas.append(choice.take(token, logprob, complete=complete))
        if request.usage.first_token_at is None:
            request.usage.first_token_at = time.perf_counter()

    def _take_out(self, choices: list[Choice], *, keep: bool = False) -> None:
        """Out of the batch, each with its own cache; `keep` them for prompts that begin the same way."""
        if not choices:
            return
        uids = [choice.uid for choice in choices if choice.uid is not None]
        wanted = not keep or any(self._prompts.is_worth_keeping(choice) for choice in choices)
        with mx.stream(self._batch.stream):
            caches = self._batch.remove(uids, return_prompt_caches=wanted)
            for choice in choices:
                cache, tokens = caches.get(choice.uid, (None, []))
                if cache is not None and keep and self._prompts.is_worth_keeping(choice):
                    mx.eval([part.state for part in cache])
                    self._prompts.keep(list(tokens), cache)
                self._leave(choice, cache, len(tokens))

    def _leave(self, choice: Choice, cache: Cache | None, computed: int) -> None:
        """The batch computes the last token too, which has to be computed again for what follows it."""
        over = computed - (len(choice.tokens) - 1)
        if cache is not None and over > 0 and choice.finish is None:
            cache = cache if can_trim_prompt_cache(cache) else None
            if cache is not None:
                trim_prompt_cache(cache, over)
        choice.leave_batch(cache or self._model.new_cache(), computed - over if cache else 0)

    def _make_room(self) -> None:
        """The youngest gives way where the context is full; first of those that are paused, which wait anyway."""
        while len(self._active) > 1 and self._tokens_held() > self._n_ctx:
            paused = [choice for choice in self._active if choice.request.id in self._paused]
            choice = max(paused or self._active, key=_AGE)
            if choice.uid is not None:
                self._take_out([choice], keep=True)
            choice.leave_batch(None, 0)
            self._active.remove(choice)
            bisect.insort(self._waiting, choice, key=_AGE)
            self._may_admit = True

    # -------------------------------------------------------------------------------------------------------- leaving

    def _end(self, choice: Choice) -> None:
        """A choice has its last delta; its request is done with the last choice."""
        request = choice.request
        self._drop(choice)
        request.choices.remove(choice)
        self._end_request(request)

    def _end_request(self, request: Request) -> None:
        """It is over where no choice is left."""
        if not request.choices:
            self._done.append(request.usage.done(request.id, len(request.prompt), time.perf_counter()))
            self._forget(request)

    def _drop(self, choice: Choice) -> None:
        if choice.uid is not None:
            self._batch.remove([choice.uid])
        choice.leave_batch(None, 0)
        if choice in self._active:
            self._active.remove(choice)
        elif choice in self._waiting:
            self._waiting.remove(choice)
        self._may_admit = True

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self._paused.discard(request.id)
        self._cancelled.discard(request.id)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            request = self._requests.get(self._cancelled.pop())
            choices = list(request.choices) if request else []
            self._take_out([choice for choice in choices if choice.uid is not None], keep=True)
            for choice in choices:
                self._deltas.append(choice.cancelled())
                self._end(choice)

    def _fail(self, request: Request, error: RequestError) -> None:
        for choice in request.choices:
            self._drop(choice)
        self._deltas = [delta for delta in self._deltas if delta.id != request.id]
        self._reports.append(Failed(request.id, error.kind, error.message, error.param))
        self._forget(request)
