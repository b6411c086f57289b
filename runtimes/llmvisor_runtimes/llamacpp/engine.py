"""The engine's loop: admit, compose, guess ahead, decode, sample, report."""

from __future__ import annotations

import sys
import time
from typing import Literal, NamedTuple

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Progress, RequestError
from llmvisor_runtimes.choice import failure_of
from llmvisor_runtimes.llamacpp import context as llama
from llmvisor_runtimes.llamacpp.adapters import Adapters
from llmvisor_runtimes.llamacpp.admission import Admission
from llmvisor_runtimes.llamacpp.batch import Turns, compose, divide
from llmvisor_runtimes.llamacpp.choice import Choice, Request, make_request
from llmvisor_runtimes.llamacpp.context import LlamaContext, Part
from llmvisor_runtimes.llamacpp.draft import DraftModel, ModelDrafter
from llmvisor_runtimes.llamacpp.kvcache import KvCache
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.llamacpp.sampling import Row, Rows
from llmvisor_runtimes.llamacpp.speculative import Drafter, LookupDrafter
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.logprobs import token_logprob
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.prefill import PrefillPace
from llmvisor_runtimes.protocol import Delta, Done, Failed, Generate, Phase, Report, Step, TokenLogprob
from llmvisor_runtimes.structured import Constraint


class Feed(NamedTuple):
    """Tokens of a choice in the batch of this step, and the `rows` of logits that they bring."""

    choice: Choice
    tokens: list[int]
    rows: int
    drafted: int = 0
    """So many at the end are guessed."""


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
    ) -> None:
        self._context = context
        self._adapters = adapters
        self._turns: Turns[AdapterSet] = Turns(steps=limits.adapter_turn_steps)
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
            step=self._steps,
            # Where all are paused nothing is due, and standing still is no hang.
            phase="idle" if self.delay_seconds() is None else self._phase,
            active=len(self._admission.active),
            waiting=len(self._admission.waiting),
            tokens=self._tokens,
            kv_used=self._kv.used,
        )

    # ---------------------------------------------------------------------------------------------- the engine's loop

    def generate(self, generate: Generate, prompt: list[int], constraint: Constraint | None = None) -> None:
        """Take a request in. Raises `RequestError` where it can never be served."""
        adapters = self._adapters.wanted(generate.adapters)
        drafters = [self._make_drafter(generate) for _ in range(generate.n)]
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
        for choice, drafter in zip(request.choices, drafters, strict=True):
            choice.drafter = drafter
        self._ages += generate.n
        self._admission.add(request.choices)
        self._requests[request.id] = request

    def _make_drafter(self, generate: Generate) -> Drafter | None:
        wanted = generate.speculative or self._speculative
        if wanted == "draft" and self._draft is None:
            raise RequestError("unsupported_operation", "this model has no draft model beside it", "speculative")
        if wanted == "off" or not self._kv.can_cut:
            return None  # what was guessed wrong has to be forgotten, which not every model can
        return ModelDrafter(self._draft) if wanted == "draft" and self._draft else LookupDrafter()

    def delay_seconds(self) -> float | None:
        """0 where a step has something to do, None where it has nothing until a call comes."""
        if self._cancelled or self._admission.due:
            return 0
        return 0 if self._admission.running() else None

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
        for request in self._requests.values():
            for choice in request.choices:
                choice.sampler.close()

    # ------------------------------------------------------------------------------------------------------ computing

    def _compute(self) -> None:
        feeds = self._compose()
        while feeds and not self._kv.make_room(sum(len(feed.tokens) for feed in feeds)):
            self._admission.preempt_one()
            feeds = self._compose()
        if not feeds:
            return
        self._phase = "decode" if all(len(feed.tokens) == 1 for feed in feeds) else "prefill"
        if self._phase == "decode":
            self._kv.park_one()
        feeds = self._with_drafts(feeds)
        tokens = sum(len(feed.tokens) for feed in feeds)
        now = time.perf_counter()
        status = self._decode(feeds, now)
        self._steps += 1
        if status == llama.DECODED:
            self._pace.observe(tokens, time.perf_counter() - now)
            self._tokens += tokens
            self._advance(feeds)
        else:
            self._recover(feeds, status)

    def _compose(self) -> list[Feed]:
        active = self._together(self._admission.running())
        pending = [choice.next_count for choice in active]
        if pending and max(pending) == 1 and len(pending) <= self._context.n_batch:
            return [self._feed(choice, 1) for choice in active]  # mostly: everybody decodes
        if scoring := [place for place, choice in enumerate(active) if choice.scores]:
            share = max(1, limits.scored_prompt_step_tokens // len(scoring))
            for place in scoring:
                pending[place] = min(pending[place], share)
        slices = compose(
            pending,
            n_batch=self._context.n_batch,
            prefill_tokens_max=self._pace.tokens(pending.count(1)),
            turn=self._steps,
        )
        return [self._feed(active[place], length) for place, length in slices]

    def _together(self, choices: list[Choice]) -> list[Choice]:
        """Those that may share a batch now: adapters act on all of it."""
        if not self._adapters or not choices:
            return choices
        adapters = self._turns.next(choice.request.adapters for choice in choices)
        self._adapters.act(self._context.pointer, adapters)
        return [choice for choice in choices if choice.request.adapters == adapters]

    def _feed(self, choice: Choice, length: int) -> Feed:
        tokens = choice.tokens[choice.computed : choice.computed + length]
        return Feed(choice, tokens, length if choice.scores else int(length == choice.pending))

    def _with_drafts(self, feeds: list[Feed]) -> list[Feed]:
        """The same with guessed tokens behind those that want some, as far as there is room for nothing better."""
        wants = [feed.choice.draft_tokens_max for feed in feeds]
        if not any(wants):
            return feeds
        tokens, rows = sum(len(feed.tokens) for feed in feeds), sum(feed.rows for feed in feeds)
        context = self._context
        room = min(context.n_batch - tokens, context.n_outputs_max - rows, self._kv.free - tokens)
        shares = divide(wants, max(0, room))
        return [self._with_draft(feed, share) for feed, share in zip(feeds, shares, strict=True)]

    def _with_draft(self, feed: Feed, count: int) -> Feed:
        choice = feed.choice
        if choice.drafter is None or count == 0:
            return feed
        draft = choice.drafter.propose(choice.tokens, count)
        ends = (place for place, token in enumerate(draft, 1) if token in self._vocabulary.end_tokens)
        draft = draft[: next(ends, count)]
        return Feed(choice, feed.tokens + draft, 1 + len(draft), len(draft))

    def _decode(self, feeds: list[Feed], now: float) -> int:
        parts: list[Part] = []
        computing: dict[int, int] = {}
        for choice, tokens, rows, _ in feeds:
            request, every = choice.request, rows == len(tokens)
            parts.append(Part(choice.sequence, choice.computed, tokens, every_logit=every, last_logit=rows > 0))
            computing[request.id] = computing.get(request.id, 0) + len(tokens)
            if request.started_at is None:
                request.started_at = now
        self._computing = computing
        self._context.clear_abort()
        # A cancellation that came before the flag was cleared must not be lost.
        status = self._context.decode(parts) if self._cancelled.isdisjoint(computing) else llama.ABORTED
        self._computing = {}
        return status

    def _advance(self, feeds: list[Feed]) -> None:
        """Take in what was computed: the books, the scores of prompts, and the next token of each that is due one."""
        total = sum(feed.rows for feed in feeds)
        logits = self._context.logits(total) if total else None
        row = output = 0
        for choice, tokens, rows, drafted in feeds:
            row += rows
            output += len(tokens)
            if choice.sequence < 0:
                continue  # another choice of its request has failed it
            start = choice.computed
            self._kv.extend(choice.sequence, tokens)
            choice.computed = start + len(tokens) - drafted
            if logits is None:
                continue
            if choice.scores:
                self._score(choice, start, logits[row - rows : row])
            if choice.computed == len(choice.tokens):
                self._sample(choice, logits[row - 1 - drafted : row], output - 1 - drafted, tokens[-1 - drafted :])

    def _sample(self, choice: Choice, rows: Rows, output: int, tokens: list[int]) -> None:
        """The next token from the first row; from each further one the next again, while what was guessed holds."""
        request = choice.request
        try:
            accepted = self._take_accepted(choice, rows, output, tokens)
        except Exception as error:  # noqa: BLE001 - of one request alone: a grammar, a parser of its text
            self._fail(request, failure_of(request.generate.request_id, error))
            return
        if choice.drafter is not None:
            choice.drafter.observe(len(tokens) - 1, accepted)
            self._settle(choice, len(tokens) - 1, accepted)
        if request.first_token_at is None:
            request.first_token_at = time.perf_counter()
        if choice.finish is not None:
            self._end(choice)

    def _take_accepted(self, choice: Choice, rows: Rows, output: int, tokens: list[int]) -> int:
        """Take tokens for as long as they are what was guessed; gives how many guesses were."""
        if choice.echo_due:
            self._deltas.append(choice.echo(choice.request.prompt_logprobs))
        accepted = 0
        # A grammar may take long over each token: the guesses left then count as wrong, so that nobody waits for them.
        until = time.perf_counter() + limits.sample_seconds_max
        while choice.finish is None:
            self._take(choice, rows[accepted], output + accepted)
            if accepted == len(tokens) - 1 or choice.tokens[-1] != tokens[accepted + 1] or time.perf_counter() > until:
                break
            accepted += 1
        return accepted

    def _take(self, choice: Choice, row: Row, output: int) -> None:
        token = choice.sampler.choose(self._context, row, output)
        top = choice.request.generate.logprobs
        logprob = None if top is None else token_logprob(row, token, top, self._vocabulary)
        self._deltas.append(choice.take(token, logprob, complete=choice.sampler.finished))

    def _settle(self, choice: Choice, drafted: int, accepted: int) -> None:
        """What was guessed right counts as computed, the rest is forgotten."""
        request = choice.request
        choice.computed += accepted
        self._kv.cut(choice.sequence, choice.computed)
        self._tokens -= drafted - accepted
        request.drafted_tokens += drafted
        request.accepted_tokens += accepted

    def _score(self, choice: Choice, start: int, rows: Row) -> None:
        """Log-probabilities of the prompt's tokens; row i is what predicts the token after position `start` + i."""
        request = choice.request
        known, prompt, top = request.prompt_logprobs, request.prompt, request.generate.logprobs or 0
        if not known:
            piece = self._vocabulary.written_piece(prompt[0])
            known.append(TokenLogprob(token=prompt[0], piece=piece, logprob=None, top=[]))
        for place, row in enumerate(rows, start + 1):
            if place == len(known) and place < len(prompt):
                known.append(token_logprob(row, prompt[place], top, self._vocabulary))
        if len(known) == len(prompt):
            for each in request.choices:
                each.scores = False

    # -------------------------------------------------------------------------------------------------------- leaving

    def _end(self, choice: Choice) -> None:
        """A choice has its last delta; its request is done with the last choice."""
        request = choice.request
        self._admission.leave(choice, keep=request.generate.cache_prompt)
        request.choices.remove(choice)
        if not request.choices:
            self._done.append(request.done(request.id, len(request.prompt), time.perf_counter()))
            self._forget(request)

    def _forget(self, request: Request) -> None:
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
                    self._kv.repair(choice.sequence)
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

    def _fail(self, request: Request, error: RequestError) -> None:
        for choice in request.choices:
            self._admission.leave(choice, keep=False)
        # What it has earned in this step would come after its end.
        self._deltas = [delta for delta in self._deltas if delta.id != request.id]
        self._reports.append(Failed(request.id, error.kind, error.message, error.param))
        self._forget(request)
