"""What a computed batch brings to each choice: the books of the cache, scores of its prompt, and its next tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.choice import failure_of
from llmvisor_runtimes.llamacpp.choice import Choice, Request
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.feeds import Feed
from llmvisor_runtimes.llamacpp.kvcache import KvCache
from llmvisor_runtimes.llamacpp.media_encoder import Unit
from llmvisor_runtimes.llamacpp.sampling import Row, Rows
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.logprobs import token_logprob
from llmvisor_runtimes.protocol import Delta, TokenLogprob


class Advancer:
    """Takes in what was computed. Deltas go to `report`, choices that are over to `end`, failed requests to `fail`."""

    def __init__(
        self,
        context: LlamaContext,
        kv: KvCache,
        vocabulary: Vocabulary,
        *,
        report: Callable[[Delta], None],
        end: Callable[[Choice], None],
        fail: Callable[[Request, RequestError], None],
    ) -> None:
        self.wasted_tokens = 0
        """Guesses that were computed and wrong, from the start on."""
        self._context = context
        self._kv = kv
        self._vocabulary = vocabulary
        self._report = report
        self._end = end
        self._fail = fail

    def advance(self, feeds: Sequence[Feed]) -> None:
        """Take in the batch that was made of these: the context has its logits."""
        total = sum(feed.rows for feed in feeds)
        logits = self._context.logits(total) if total else None
        row = output = 0
        for choice, tokens, rows, drafted, unit in feeds:
            row += rows
            output += len(tokens)
            if choice.sequence < 0:
                continue  # another choice of its request has failed it
            start = choice.computed
            self._kv.extend(choice.sequence, tokens)
            choice.computed = start + len(tokens) - drafted
            if unit is not None and not any(self._computes(other, unit) for other in choice.request.choices):
                unit.release()
            if logits is None:
                continue
            if choice.scores:
                self._score(choice, start, logits[row - rows : row])
            if choice.unrepeated is not None:
                self._repeat(choice, start + len(tokens) - rows, logits[row - rows : row])
            if choice.sequence >= 0 and choice.computed == len(choice.tokens):
                self._sample(choice, logits[row - 1 - drafted : row], output - 1 - drafted, tokens[-1 - drafted :])

    def _computes(self, choice: Choice, unit: Unit) -> bool:
        """Whether it still has this to compute: one that waits will most likely find it in the cache."""
        if choice.sequence < 0 and self._kv.can_cut and choice.reuse_max >= unit.end:
            return False
        return choice.computed < unit.end

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
            self._report(choice.echo(choice.request.prompt_logprobs))
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
        self._report(choice.take(token, logprob, complete=choice.sampler.finished))

    def _settle(self, choice: Choice, drafted: int, accepted: int) -> None:
        """What was guessed right counts as computed, the rest is forgotten."""
        request = choice.request
        choice.computed += accepted
        self._kv.cut(choice.sequence, choice.computed)
        self.wasted_tokens += drafted - accepted
        request.drafted_tokens += drafted
        request.accepted_tokens += accepted

    def _repeat(self, choice: Choice, start: int, rows: Rows) -> None:
        """What another worker chose: row i is what predicted the token after position `start` + i."""
        request, top = choice.request, choice.request.generate.logprobs
        try:
            for place, row in enumerate(rows, start + 1):
                if place != choice.unrepeated or place >= len(choice.tokens):
                    continue
                token = choice.tokens[place]
                if choice.sampler.follows_logits:
                    choice.sampler.repeat(token, row)
                if top is not None:
                    choice.set_logprob(place, token_logprob(row, token, top, self._vocabulary))
                choice.unrepeated = place + 1 if place + 1 < len(choice.tokens) else None
        except Exception as error:  # noqa: BLE001 - of one request alone: its grammar
            self._fail(request, failure_of(request.generate.request_id, error))

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
