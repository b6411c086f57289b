"""One request and its choices: their tokens, their text and what they report."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.sampling import Sampler
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Delta, Done, FinishReason, Generate, TokenLogprob
from llmvisor_runtimes.text import TextAssembler


@dataclass(slots=True, eq=False)
class Request:
    """A request under way."""

    generate: Generate
    prompt: list[int]
    choices: list[Choice] = field(default_factory=list["Choice"])
    """Those that have not ended."""
    cached_tokens: int | None = None
    """None until its first choice has begun."""
    completion_tokens: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    """Those known so far, from the first token on; for an echo with log-probabilities."""

    @property
    def id(self) -> int:
        return self.generate.id

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of the prompt are wanted, so logits of each of its tokens are needed."""
        return self.generate.echo and self.generate.logprobs is not None

    def done(self, now: float) -> Done:
        """Usage and timings of an ended request."""
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Done(
            id=self.id,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=self.completion_tokens,
            prompt_ms=(first - started) * 1e3,
            predicted_ms=(now - first) * 1e3,
        )


def make_request(generate: Generate, prompt: list[int], *, n_ctx: int, vocabulary: Vocabulary, age: int) -> Request:
    """A request with its choices, the first of which has this age.

    Raises `RequestError` where it can never be served.
    """
    vocabulary.check(prompt, "prompt")
    if not prompt:
        raise RequestError("invalid_value", "the prompt is empty: there is no token to continue", "prompt")
    if len(prompt) >= n_ctx:
        raise RequestError(
            "context_length_exceeded",
            f"the prompt has {len(prompt)} tokens, but the context holds {n_ctx} including at least one generated "
            "token",
            "prompt",
        )
    request = Request(generate, prompt)
    sampling = generate.sampling
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    for index in range(generate.n):
        sampler = Sampler(
            sampling, seed=seed + index, vocabulary=vocabulary, n_ctx=n_ctx, ignore_eos=generate.ignore_eos
        )
        sampler.remember(prompt)
        choice = Choice(request, index, age=age + index, n_ctx=n_ctx, sampler=sampler, vocabulary=vocabulary)
        request.choices.append(choice)
    return request


class Choice:
    """One choice: a sequence of the KV cache while it has a slot, and tokens to be computed at any time."""

    __slots__ = (
        "_assembler",
        "_held_logprobs",
        "_seeded",
        "_sent_bytes",
        "_tokens_left",
        "_vocabulary",
        "_written_bytes",
        "age",
        "computed",
        "echo_due",
        "finish",
        "index",
        "request",
        "sampler",
        "scores",
        "sequence",
        "tokens",
    )

    def __init__(
        self, request: Request, index: int, *, age: int, n_ctx: int, sampler: Sampler, vocabulary: Vocabulary
    ) -> None:
        generate = request.generate
        self.request = request
        self.index = index
        self.age = age
        """Counts choices: the one with the largest number came last."""
        self.sampler = sampler
        self.tokens = list(request.prompt)
        self.sequence = -1
        self.computed = 0
        """How many of the tokens are in the KV cache."""
        self.finish: FinishReason | None = None
        self.echo_due = generate.echo
        self.scores = request.scores_prompt
        """Logits of each token of the prompt are still needed."""
        self._seeded = generate.sampling.seed is not None
        self._tokens_left = n_ctx - len(self.tokens)
        if generate.max_tokens is not None:
            self._tokens_left = min(self._tokens_left, generate.max_tokens)
        self._vocabulary = vocabulary
        self._assembler = TextAssembler(generate.stop)
        self._held_logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self._written_bytes = 0
        self._sent_bytes = 0

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def next_count(self) -> int:
        """Tokens that may be computed together next.

        With a seed the last token of a prompt is computed alone: as it is when the rest comes from the cache the next
        time. In one batch with the others its logits would differ by float noise, and the same seed give another text.
        """
        count = len(self.tokens) - self.computed
        return count - 1 if count > 1 and self._seeded else count

    @property
    def wants_token(self) -> bool:
        """A token has to be sampled once all are computed; not so where only the prompt is scored."""
        return self._tokens_left > 0

    @property
    def reuse_max(self) -> int:
        """Tokens that may come from the cache: not the last, whose logits are needed, and none that is to be scored."""
        if not self.request.generate.cache_prompt:
            return 0
        if self.scores:
            return max(0, len(self.request.prompt_logprobs) - 1)
        return len(self.tokens) - 1

    def echo(self) -> Delta:
        """The prompt itself, once it has been computed."""
        self.echo_due = False
        prompt = self.request.prompt
        shown = prompt[1:] if self._vocabulary.adds_bos and prompt[:1] == [self._vocabulary.bos] else prompt
        text = b"".join(map(self._vocabulary.written_piece, shown)).decode("utf-8", "replace")
        if not self.wants_token:
            self.finish = "length"
        logprobs = self.request.prompt_logprobs
        return Delta(self.request.id, self.index, text, prompt, finish=self.finish, logprobs=logprobs)

    def nothing_wanted(self) -> Delta:
        """The only delta of a choice of no tokens."""
        self.finish = "length"
        return Delta(self.request.id, self.index, "", [], finish="length")

    def take(self, token: int, logprob: TokenLogprob | None) -> Delta:
        """The delta that a sampled token brings; sets `finish` where it is the last."""
        self.tokens.append(token)
        self.request.completion_tokens += 1
        self._tokens_left -= 1
        assembler = self._assembler
        if token in self._vocabulary.end_tokens:
            self.finish = "stop"
            text = assembler.flush()
            logprob = None
        else:
            piece = self._vocabulary.piece(token)
            text = assembler.push(piece)
            if logprob is not None:
                self._held_logprobs.append((self._written_bytes, logprob))
                self._written_bytes += len(piece)
            if assembler.stopped:
                self.finish = "stop"
            elif self._tokens_left <= 0:
                self.finish = "length"
                text += assembler.flush()
        if assembler.stopped:
            self.finish = "stop"
        if not self._held_logprobs:
            return Delta(self.request.id, self.index, text, [token], self.finish)
        return Delta(self.request.id, self.index, text, [token], self.finish, self._released_logprobs(text))

    def cancelled(self) -> Delta:
        """The last delta of a choice that was cancelled."""
        self.finish = "cancelled"
        return Delta(self.request.id, self.index, "", [], finish="cancelled")

    def _released_logprobs(self, text: str) -> list[TokenLogprob]:
        """Log-probabilities go out with the text of their tokens, and not at all where a stop string cut it off."""
        self._sent_bytes += len(text.encode())
        everything = self.finish is not None and not self._assembler.stopped
        released: list[TokenLogprob] = []
        while self._held_logprobs and (everything or self._held_logprobs[0][0] < self._sent_bytes):
            released.append(self._held_logprobs.popleft()[1])
        return released
