"""The engine's loop: admit, compose, decode, sample, report.

Choices wait in the order in which they came, get a slot when there is one and room in the KV cache, and keep it until
they end. When the cache is full the youngest goes back to waiting and is computed again later; nobody fails for it.
"""

from __future__ import annotations

import bisect
import sys
import time
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Progress
from llmvisor_runtimes.llamacpp import context as llama
from llmvisor_runtimes.llamacpp.batch import PrefillPace, compose
from llmvisor_runtimes.llamacpp.choice import Choice, Request, make_request
from llmvisor_runtimes.llamacpp.context import LlamaContext, Part
from llmvisor_runtimes.llamacpp.kvcache import KvCache, Match
from llmvisor_runtimes.llamacpp.parked import common_prefix
from llmvisor_runtimes.llamacpp.sampling import Row, token_logprob
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Delta, Done, Failed, Generate, Phase, Report, Step, TokenLogprob
from llmvisor_runtimes.structured import Constraint


class Feed(NamedTuple):
    """The next `length` tokens of a choice in the batch of this step, and the `rows` of logits that they bring."""

    choice: Choice
    length: int
    rows: int


_AGE: Callable[[Choice], int] = attrgetter("age")


class Engine:
    """Generates for many requests at once with one context.

    `generate`, `step` and `delay_seconds` belong to one thread; `cancel`, `pause`, `resume` and `progress` may be
    called from any.
    """

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary, *, slots: int, kv: KvCache) -> None:
        self._context = context
        self._vocabulary = vocabulary
        self._slots = slots
        self._kv = kv
        self._pace = PrefillPace(
            step_seconds=limits.prefill_step_seconds,
            granule=limits.prefill_granule_tokens,
            tokens_max=context.n_batch,
        )
        self._requests: dict[int, Request] = {}
        self._waiting: list[Choice] = []
        self._active: list[Choice] = []
        self._cancelled: set[int] = set()
        self._paused: set[int] = set()
        self._computing: dict[int, int] = {}
        """Tokens in the batch under way, by request."""
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
        """End a request in the next step; the one under way is aborted where most of it is this request's prompt."""
        if id not in self._requests:
            return
        self._cancelled.add(id)
        computing = self._computing
        if 2 * computing.get(id, 0) > max(sum(computing.values()), limits.abort_batch_tokens_min):
            self._context.abort()

    def pause(self, id: int) -> None:
        if id in self._requests:
            self._paused.add(id)

    def resume(self, id: int) -> None:
        self._paused.discard(id)
        self._may_admit = True

    def progress(self) -> Progress:
        return Progress(
            step=self._steps,
            # Where all are paused nothing is due, and standing still is no hang.
            phase="idle" if self.delay_seconds() is None else self._phase,
            active=len(self._active),
            waiting=len(self._waiting),
            tokens=self._tokens,
            kv_used=self._kv.used,
        )

    # ---------------------------------------------------------------------------------------------- the engine's loop

    def generate(self, generate: Generate, prompt: list[int], constraint: Constraint | None = None) -> None:
        """Take a request in. Raises `RequestError` where it can never be served."""
        request = make_request(generate, prompt, n_ctx=self._kv.cells, vocabulary=self._vocabulary, age=self._ages + 1)
        self._ages += generate.n
        self._waiting += request.choices
        self._requests[request.id] = request
        self._may_admit = True

    def delay_seconds(self) -> float | None:
        """0 where a step has something to do, None where it has nothing until a call comes."""
        if self._cancelled or (self._may_admit and self._waiting):
            return 0
        if self._paused:
            return 0 if any(choice.request.id not in self._paused for choice in self._active) else None
        return 0 if self._active else None

    def step(self) -> list[Report]:
        """Compute one batch, and what it brought."""
        self._end_cancelled()
        if self._may_admit and self._waiting:
            self._admit()
        self._compute()
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
        for request in self._requests.values():
            for choice in request.choices:
                choice.sampler.close()

    # ------------------------------------------------------------------------------------------------------ admission

    def _admit(self) -> None:
        """Give slots to those that wait, in order; one that waits for room is never overtaken."""
        self._may_admit = False
        for choice in list(self._waiting):
            if len(self._active) >= self._slots:
                return
            if not choice.wants_token and not choice.echo_due:
                self._waiting.remove(choice)
                self._deltas.append(choice.nothing_wanted())
                self._end(choice)
                continue
            if choice.request.id in self._paused:
                continue
            self._kv.recall(choice.tokens, choice.reuse_max)
            if not self._active:
                self._kv.park_all(choice.tokens, choice.reuse_max)
            match = self._kv.match(choice.tokens, choice.reuse_max)
            if self._prefix_is_coming(choice, match):
                self._may_admit = True
                continue
            if not self._open(choice, match):
                return

    def _open(self, choice: Choice, match: Match) -> bool:
        # What is being computed already has to find room too, and some steps beyond, or it would drive this one out.
        spare = sum(active.pending + limits.admission_spare_tokens for active in self._active)
        if not self._kv.fits(choice.tokens, match, spare):
            return False
        sequence = self._kv.open(match)
        if sequence is None:
            return False
        choice.sequence, choice.computed = sequence, match.length
        if choice.request.cached_tokens is None:
            choice.request.cached_tokens = match.length
        self._waiting.remove(choice)
        self._active.append(choice)
        return True

    def _prefix_is_coming(self, choice: Choice, match: Match) -> bool:
        """Whether somebody is computing a longer common beginning than the cache has: it is worth waiting for."""
        for active in self._active:
            if active.pending <= 1 or active.request.id in self._paused:
                continue
            if active.request is choice.request and choice.request.scores_prompt:
                return True
            shared = min(choice.reuse_max, common_prefix(active.tokens, choice.tokens))
            if shared >= match.length + limits.awaited_prefix_tokens_min and active.computed < shared:
                return True
        return False

    # ------------------------------------------------------------------------------------------------------ computing

    def _compute(self) -> None:
        feeds = self._compose()
        while feeds and not self._kv.make_room(sum(feed.length for feed in feeds)):
            self._preempt_one()
            feeds = self._compose()
        if not feeds:
            return
        tokens = sum(feed.length for feed in feeds)
        self._phase = "prefill" if tokens > len(feeds) else "decode"
        if self._phase == "decode":
            self._kv.park_one()
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
        active = self._active
        if self._paused:
            active = [choice for choice in active if choice.request.id not in self._paused]
        pending = [choice.next_count for choice in active]
        if pending and max(pending) == 1 and len(pending) <= self._context.n_batch:
            return [Feed(choice, 1, 1) for choice in active]  # mostly: everybody decodes
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

    def _feed(self, choice: Choice, length: int) -> Feed:
        return Feed(choice, length, length if choice.scores else int(length == choice.pending))

    def _decode(self, feeds: list[Feed], now: float) -> int:
        parts: list[Part] = []
        computing: dict[int, int] = {}
        for choice, length, rows in feeds:
            request, start = choice.request, choice.computed
            tokens = choice.tokens[start : start + length]
            parts.append(Part(choice.sequence, start, tokens, every_logit=rows == length, last_logit=rows > 0))
            computing[request.id] = computing.get(request.id, 0) + length
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
        for choice, length, rows in feeds:
            row += rows
            output += length
            start = choice.computed
            self._kv.extend(choice.sequence, choice.tokens[start : start + length])
            choice.computed = start + length
            if logits is None:
                continue
            if choice.scores:
                self._score(choice, start, logits[row - rows : row])
            if choice.computed == len(choice.tokens):
                self._sample(choice, logits[row - 1], output - 1)

    def _sample(self, choice: Choice, row: Row, output: int) -> None:
        request = choice.request
        if choice.echo_due:
            self._deltas.append(choice.echo())
        if choice.finish is None:
            token = choice.sampler.choose(self._context, row, output)
            top = request.generate.logprobs
            logprob = None if top is None else token_logprob(row, token, top, self._vocabulary)
            self._deltas.append(choice.take(token, logprob))
        if request.first_token_at is None:
            request.first_token_at = time.perf_counter()
        if choice.finish is not None:
            self._end(choice)

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
        self._leave(choice, keep=request.generate.cache_prompt)
        request.choices.remove(choice)
        if not request.choices:
            self._done.append(request.done(time.perf_counter()))
            self._forget(request)

    def _leave(self, choice: Choice, *, keep: bool) -> None:
        choice.sampler.close()
        if choice.sequence >= 0:
            self._kv.close(choice.sequence, keep=keep)
            choice.sequence = -1
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
            for choice in list(request.choices) if request else []:
                self._deltas.append(choice.cancelled())
                self._end(choice)

    def _preempt_one(self) -> None:
        """The youngest makes room: first of those that are paused, which wait anyway."""
        paused = [choice for choice in self._active if choice.request.id in self._paused]
        self._preempt(max(paused or self._active, key=_AGE))

    def _preempt(self, choice: Choice) -> None:
        self._active.remove(choice)
        self._kv.drop(choice.sequence)
        choice.sequence, choice.computed = -1, 0
        bisect.insort(self._waiting, choice, key=_AGE)

    def _recover(self, feeds: list[Feed], status: int) -> None:
        """A batch was not computed: the books stay as they were, and the memory is made to agree with them."""
        choices = [feed.choice for feed in feeds]
        if status == llama.ABORTED or (status == llama.NO_ROOM and len(self._active) > 1):
            for choice in choices:
                if self._kv.can_cut:
                    self._kv.repair(choice.sequence)
                else:
                    self._preempt(choice)
            if status == llama.NO_ROOM and self._kv.can_cut:
                self._preempt_one()
            self._may_admit = True
            return
        message = f"llama_decode failed with {status} for a batch of {sum(feed.length for feed in feeds)} tokens"
        print(message, file=sys.stderr, flush=True)
        for request in dict.fromkeys(choice.request for choice in choices):
            for choice in request.choices:
                self._leave(choice, keep=False)
            self._reports.append(Failed(request.id, "internal_error", message))
            self._forget(request)
