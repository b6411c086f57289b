"""Prompts: where each begins, and their computing piece by piece until it can decode."""

# pyright: standard
# mlx and mlx-lm ship no complete types.

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from llmvisor_runtimes import limits
from llmvisor_runtimes.logprobs import token_logprob
from llmvisor_runtimes.mlx.model import MlxModel
from llmvisor_runtimes.mlx.prefixes import PrefixCache
from llmvisor_runtimes.mlx.sampling import as_numpy
from llmvisor_runtimes.mlx.sequence import Cache, Choice, Request
from llmvisor_runtimes.prefill import PrefillPace, common_prefix
from llmvisor_runtimes.protocol import TokenLogprob


class PromptReader:
    """Computes all of a prompt but its last token, with which its choices enter the batch."""

    def __init__(self, model: MlxModel, prefixes: PrefixCache[Cache], stream: mx.Stream | mx.ThreadLocalStream) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._prefixes = prefixes
        self._stream = stream
        self._pace = PrefillPace(
            step_seconds=limits.prefill_step_seconds, granule=limits.prefill_granule_tokens, tokens_max=model.n_batch
        )

    def begin(self, choice: Choice, reading: Sequence[Choice]) -> bool:
        """Give a choice what is computed of its tokens; False where it is worth waiting for one that is `reading`.

        Choices of one request share their prompt, whatever may be kept of it for others.
        """
        request = choice.request
        shared = None if choice.scores else request.prompt_cache
        if shared is not None and len(choice.tokens) == len(request.prompt):
            choice.cache, choice.computed = shared, len(choice.tokens) - 1
            return True
        if request.prompt_cache is None and any(other.request is request for other in reading):
            return False
        reuse_max = _reuse_max(choice)
        match = self._prefixes.match(choice.tokens, reuse_max)
        length = match.length if match else 0
        if shared is not None and length < len(request.prompt):
            choice.cache, choice.computed = copy.deepcopy(shared), len(request.prompt) - 1
            return True
        if any(_is_coming(other, choice, reuse_max, length) for other in reading):
            return False
        choice.cache = copy.deepcopy(match.kept.state) if match else self._model.new_cache()
        choice.computed = length
        if match and length < len(match.kept.tokens):
            trim_prompt_cache(choice.cache, len(match.kept.tokens) - length)
        if request.usage.cached_tokens is None:
            request.usage.cached_tokens = min(length, len(request.prompt))
        return True

    def read(self, choice: Choice) -> int:
        """Compute the next piece of a choice's tokens; gives how many."""
        request = choice.request
        start, stop = choice.computed, self._stop(choice)
        began = time.perf_counter()
        if request.usage.started_at is None:
            request.usage.started_at = began
        with mx.stream(self._stream):
            logits = self._model.model(mx.array([choice.tokens[start:stop]]), cache=choice.cache)
            if choice.scores:
                self._score(request, start, logits[0])
            if choice.unscored is not None and start >= choice.unscored - 1:
                self._score_sent(choice, start, logits[0])
            mx.eval([part.state for part in choice.cache or ()])
        mx.clear_cache()
        choice.computed = stop
        if stop == len(request.prompt) - 1 < len(choice.tokens) - 1 and len(request.choices) > 1:
            request.prompt_cache = request.prompt_cache or copy.deepcopy(choice.cache)  # its own goes on
        self._pace.observe(stop - start, time.perf_counter() - began)
        return stop - start

    def _stop(self, choice: Choice) -> int:
        """Where the next piece ends: at most so long as its logits may be, and where others will begin."""
        start, length = choice.computed, self._pace.tokens()
        prompt, unscored = len(choice.request.prompt) - 1, choice.unscored
        if choice.scores or (unscored is not None and start >= unscored - 1):
            length = limits.scored_prompt_step_tokens
        elif unscored is not None:
            length = min(length, unscored - 1 - start)
        if start < prompt and len(choice.request.choices) > 1:
            length = min(length, prompt - start)  # the other choices go on from there
        return start + min(choice.unread, length)

    def share(self, choice: Choice) -> None:
        """A choice has all it needs to enter the batch: what is computed of its prompt is there for others now."""
        request = choice.request
        if request.usage.started_at is None:
            request.usage.started_at = time.perf_counter()
        if choice.scores and not request.prompt_logprobs:
            self._score_first(request)
        if request.prompt_cache is not None or len(choice.tokens) != len(request.prompt):
            return
        request.prompt_cache = choice.cache
        if request.generate.cache_prompt and choice.cache is not None:
            self.keep(choice.tokens[:-1], choice.cache)

    def keep(self, tokens: list[int], cache: Cache) -> None:
        """Keep the state after these tokens for prompts that begin with them. Nobody may change it any more."""
        self._prefixes.put(tokens, cache, sum(part.nbytes for part in cache), can_cut=can_trim_prompt_cache(cache))

    def is_worth_keeping(self, choice: Choice) -> bool:
        """Whether hardly any of its tokens are kept yet."""
        if not choice.request.generate.cache_prompt:
            return False
        return not self._prefixes.covers(choice.tokens, limits.parked_gain_tokens_min)

    def close(self) -> None:
        """Keep nothing."""
        self._prefixes.clear()

    def _score(self, request: Request, start: int, rows: mx.array) -> None:
        """Log-probabilities of the prompt's tokens; row i is what predicts the token after position `start` + i."""
        known, prompt, top = request.prompt_logprobs, request.prompt, request.generate.logprobs or 0
        if not known:
            self._score_first(request)
        for place, row in enumerate(as_numpy(rows), start + 1):
            if place == len(known) and place < len(prompt):
                known.append(token_logprob(row, prompt[place], top, self._vocabulary))

    def _score_sent(self, choice: Choice, start: int, rows: mx.array) -> None:
        """Log-probabilities of what another worker chose, and has not sent yet; rows as for `_score`."""
        top = choice.request.generate.logprobs or 0
        for place, row in enumerate(as_numpy(rows), start + 1):
            choice.set_logprob(place, token_logprob(row, choice.tokens[place], top, self._vocabulary))
        after = start + 1 + rows.shape[0]
        choice.unscored = after if after < len(choice.tokens) else None

    def _score_first(self, request: Request) -> None:
        """Nothing predicts the first token."""
        token = request.prompt[0]
        piece = self._vocabulary.written_piece(token)
        request.prompt_logprobs.append(TokenLogprob(token=token, piece=piece, logprob=None, top=[]))


def _reuse_max(choice: Choice) -> int:
    """Tokens that need not be computed where they are kept: those with the logits that are wanted have to be."""
    request = choice.request
    if not request.generate.cache_prompt or (choice.scores and not request.prompt_logprobs):
        return 0
    return len(choice.tokens) - 1 if choice.unscored is None else choice.unscored - 1


def _is_coming(other: Choice, choice: Choice, reuse_max: int, length: int) -> bool:
    """Whether `other` is computing a common beginning that is longer than `length`: it is worth waiting for."""
    if not other.request.generate.cache_prompt:
        return False
    shared = min(reuse_max, common_prefix(other.tokens, choice.tokens))
    return shared >= length + limits.awaited_prefix_tokens_min
