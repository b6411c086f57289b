"""The engine's loop: admit, compose, guess ahead, decode, sample, report."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import Literal

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Progress, RequestError
from llmvisor_runtimes.llamacpp import context as llama
from llmvisor_runtimes.llamacpp.adapters import Adapters
from llmvisor_runtimes.llamacpp.admission import Admission
from llmvisor_runtimes.llamacpp.advance import Advancer
from llmvisor_runtimes.llamacpp.choice import Choice, Request, make_request
from llmvisor_runtimes.llamacpp.context import LlamaContext, Part
from llmvisor_runtimes.llamacpp.draft import DraftModel, ModelDrafter
from llmvisor_runtimes.llamacpp.feeds import Feed, Feeder
from llmvisor_runtimes.llamacpp.kvcache import KvCache
from llmvisor_runtimes.llamacpp.media_encoder import MediaEncoder
from llmvisor_runtimes.llamacpp.media_tokens import has_media
from llmvisor_runtimes.llamacpp.speculative import Drafter, LookupDrafter
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.prefill import PrefillPace
from llmvisor_runtimes.protocol import Delta, Done, Failed, Generate, Phase, Report, Step
from llmvisor_runtimes.structured import Constraint

Speculative = Literal["off", "lookup", "draft"]


class Engine:
    """Generates for many requests at once with one context.

    `generate`, `step` and `delay_seconds` belong to one thread; `cancel`, `pause`, `resume` and `progress` may be
    called from any.
    """

    def __init__(
        self,
        context: LlamaContext,
        vocabulary: Vocabulary,
        *,
        slots: int,
        kv: KvCache,
        adapters: Adapters,
        format: OutputFormat,
        speculative: Speculative = "off",
        draft: DraftModel | None = None,
        media: MediaEncoder | None = None,
    ) -> None:
        self._context = context
        self._adapters = adapters
        self._media = media
        self._cores = (media and media.turns) or nullcontext()
        self._format = format
        self._speculative: Speculative = speculative
        self._draft = draft
        self._vocabulary = vocabulary
        self._kv = kv
        self._admission = Admission(kv, slots=slots)
        self._pace = PrefillPace(
            step_seconds=limits.prefill_step_seconds,
            granule=limits.prefill_granule_tokens,
            tokens_max=context.n_batch,
        )
        self._feeder = Feeder(context, kv, adapters, vocabulary, self._pace)
        self._advancer = Advancer(context, kv, vocabulary, report=self._report, end=self._end, fail=self._fail)
        self._requests: dict[int, Request] = {}
        self._cancelled: set[int] = set()
        self._computing: dict[int, int] = {}
        """Tokens in the batch under way, by request."""
        self._ages = 0
        self._reports: list[Report] = []
        self._deltas: list[Delta] = []
        self._done: list[Done] = []
        self._phase: Phase = "idle"
        self._steps = 0
        self._tokens = 0

    # --------------------------------------------------------------------------------------------- from other threads

    def cancel(self, id: int) -> None:
        """End a request in the next step; the one under way is aborted where most of it is this request's prompt."""
        if id not in self._requests:
            return
        self._cancelled.add(id)
        computing = self._computing
        if 2 * computing.get(id, 0) > max(sum(computing.values()), limits.abort_batch_tokens_min):
            self._context.abort()

    def pause(self, id: int) -> None:
        if id in self._requests:
            self._admission.paused.add(id)

    def resume(self, id: int) -> None:
        self._admission.paused.discard(id)
        self._admission.changed = True

    def progress(self) -> Progress:
        return Progress(
            step=self._steps + (self._media.pieces if self._media else 0),
            # Where all are paused nothing is due, and standing still is no hang.
            phase="idle" if self.delay_seconds() is None else self._phase,
            active=len(self._admission.active),
            waiting=len(self._admission.waiting),
            tokens=self._tokens - self._advancer.wasted_tokens,
            kv_used=self._kv.used,
        )

    # ---------------------------------------------------------------------------------------------- the engine's loop

    def generate(self, generate: Generate, prompt: list[int], constraint: Constraint | None = None) -> None:
        """Take a request in. Raises `RequestError` where it can never be served."""
        adapters = self._adapters.wanted(generate.adapters)
        drafters = [self._make_drafter(generate, prompt) for _ in range(generate.n)]
        # Last, since nothing but the request itself frees the samplers that it holds.
        request = make_request(
            generate,
            prompt,
            n_ctx=self._kv.cells,
            vocabulary=self._vocabulary,
            age=self._ages + 1,
            format=self._format,
            constraint=constraint,
        )
        request.adapters = adapters
        for choice, drafter in zip(request.choices, drafters, strict=False):  # those that had ended before need none
            choice.drafter = drafter
        self._ages += generate.n
        self._admission.add(request.choices)
        self._requests[request.id] = request
        self._end_request(request)

    def _make_drafter(self, generate: Generate, prompt: list[int]) -> Drafter | None:
        wanted = generate.speculative or self._speculative
        if wanted == "draft" and self._draft is None:
            raise RequestError("unsupported_operation", "this model has no draft model beside it", "speculative")
        # What was guessed wrong has to be forgotten, which not every model can. No drafter reads images.
        if wanted == "off" or not self._kv.can_cut or has_media(prompt):
            return None
        return ModelDrafter(self._draft) if wanted == "draft" and self._draft else LookupDrafter()

    def delay_seconds(self) -> float | None:
        """0 where a step has something to do, None where it has nothing until a call comes.

        Where all that is left to do waits for images to be encoded, the time until it looks again.
        """
        if self._cancelled or self._done:
            return 0
        running = self._admission.running()
        if self._media and running and not any(choice.next_count for choice in running):
            return limits.media_poll_seconds  # also where others wait for a prefix that has such an image
        return 0 if running or self._admission.due else None

    def step(self) -> list[Report]:
        """Compute one batch, and what it brought."""
        self._end_cancelled()
        if self._admission.due:
            for choice in self._admission.admit():
                self._deltas.append(choice.nothing_wanted())
                self._end(choice)
        self._compute()
        reports = self._reports
        if self._deltas or self._done:
            reports.append(Step(self._deltas, self._done))
            self._deltas, self._done = [], []
        self._reports = []
        if not self._admission.active:
            self._phase = "idle"
        return reports

    def close(self) -> None:
        """Free what the requests hold."""
        if self._media:
            self._media.close()
        for request in self._requests.values():
            for choice in request.choices:
                choice.sampler.close()

    # ------------------------------------------------------------------------------------------------------ computing

    def _compute(self) -> None:
        self._encode()
        feeds = self._feeder.next(self._admission.running(), self._steps)
        while feeds and not self._kv.make_room(sum(len(feed.tokens) for feed in feeds)):
            self._admission.preempt_one()
            feeds = self._feeder.next(self._admission.running(), self._steps)
        if not feeds:
            if self._admission.running():
                self._phase = "prefill"  # images are being encoded
            return
        self._phase = "decode" if all(len(feed.tokens) == 1 for feed in feeds) else "prefill"
        if self._phase == "decode":
            self._kv.park_one()
        units = [feed for feed in feeds if feed.unit is not None] if self._media else []
        texts = [feed for feed in feeds if feed.unit is None] if units else feeds
        if texts:
            self._compute_batch(texts, sum(len(feed.tokens) for feed in units))
        for feed in units:
            if feed.choice.sequence >= 0:  # what went before may have sent it back to wait
                self._compute_batch([feed])

    def _compute_batch(self, feeds: list[Feed], reserved: int = 0) -> None:
        """`reserved` cells are for other batches of the step."""
        with self._cores:
            feeds = self._feeder.with_drafts(feeds, reserved)  # which may compute with a draft model
            tokens = sum(len(feed.tokens) for feed in feeds)
            now = time.perf_counter()
            status = self._decode(feeds, now)
            seconds = time.perf_counter() - now
        self._steps += 1
        if status == llama.DECODED:
            self._pace.observe(tokens, seconds)
            self._tokens += tokens
            self._advancer.advance(feeds)
        else:
            self._recover(feeds, status)

    def _decode(self, feeds: list[Feed], now: float) -> int:
        parts: list[Part] = []
        computing: dict[int, int] = {}
        for choice, tokens, rows, _, _ in feeds:
            request, every = choice.request, rows == len(tokens)
            position = choice.position if request.units else choice.computed
            parts.append(Part(choice.sequence, position, tokens, every_logit=every, last_logit=rows > 0))
            computing[request.id] = computing.get(request.id, 0) + len(tokens)
            if request.started_at is None:
                request.started_at = now
        self._computing = computing
        self._context.clear_abort()
        # A cancellation that came before the flag was cleared must not be lost.
        status = llama.ABORTED
        if self._cancelled.isdisjoint(computing):
            status = self._context.decode(parts) if feeds[0].unit is None else self._decode_unit(feeds[0])
        self._computing = {}
        return status

    def _decode_unit(self, feed: Feed) -> int:
        """Some places of an image or sound, which have a batch of their own."""
        choice, unit, count = feed.choice, feed.unit, len(feed.tokens)
        assert unit is not None
        assert unit.embeddings is not None
        done = choice.computed - unit.start
        places = unit.chunk.places(choice.position - done)
        return self._context.decode_embeddings(
            choice.sequence,
            unit.embeddings[done : done + count],
            places[:, done : done + count],
            causal=not unit.chunk.non_causal,
            last_logit=feed.rows > 0,
        )

    def _encode(self) -> None:
        """Ask for the next image of each request that has one, and fail those whose image cannot be encoded."""
        if self._media is None:
            return
        for choice in list(self._admission.active):
            unit = choice.missing_unit
            if unit is None or choice.sequence < 0:
                continue
            if unit.error is not None:
                self._fail(choice.request, unit.error)
            else:
                self._media.want(unit)

    # -------------------------------------------------------------------------------------------------------- leaving

    def _end(self, choice: Choice) -> None:
        """A choice has its last delta; its request is done with the last choice."""
        request = choice.request
        self._admission.leave(choice, keep=request.generate.cache_prompt)
        request.choices.remove(choice)
        self._end_request(request)

    def _end_request(self, request: Request) -> None:
        """It is over where no choice is left."""
        if not request.choices:
            self._done.append(request.done(request.id, len(request.prompt), time.perf_counter()))
            self._forget(request)

    def _forget(self, request: Request) -> None:
        if self._media:
            for unit in request.units:
                self._media.drop(unit)
        del self._requests[request.id]
        self._admission.paused.discard(request.id)
        self._cancelled.discard(request.id)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            request = self._requests.get(self._cancelled.pop())
            for choice in list(request.choices) if request else []:
                self._deltas.append(choice.cancelled())
                self._end(choice)

    def _recover(self, feeds: list[Feed], status: int) -> None:
        """A batch was not computed: the books stay as they were, and the memory is made to agree with them."""
        choices = [feed.choice for feed in feeds]
        if status == llama.ABORTED or (status == llama.NO_ROOM and len(self._admission.active) > 1):
            for choice in choices:
                if self._kv.can_cut:
                    choice.computed = self._kv.repair(choice.sequence)
                else:
                    self._admission.preempt(choice)
            if status == llama.NO_ROOM and self._kv.can_cut:
                self._admission.preempt_one()
            self._admission.changed = True
            return
        message = f"llama_decode failed with {status} for a batch of {sum(len(feed.tokens) for feed in feeds)} tokens"
        print(message, file=sys.stderr, flush=True)
        for request in dict.fromkeys(choice.request for choice in choices):
            self._fail(request, RequestError("internal_error", message))

    def _report(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def _fail(self, request: Request, error: RequestError) -> None:
        for choice in request.choices:
            self._admission.leave(choice, keep=False)
        # What it has earned in this step would come after its end.
        self._deltas = [delta for delta in self._deltas if delta.id != request.id]
        self._reports.append(Failed(request.id, error.kind, error.message, error.param))
        self._forget(request)
