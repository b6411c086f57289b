"""One choice of one request, and its place in the engine."""

# pyright: standard
# mlx and mlx-lm ship no complete types.

from __future__ import annotations

import secrets
from typing import Any

from llmvisor_runtimes.choice import ChoiceText, Usage, check_prompt
from llmvisor_runtimes.mlx.sampling import (
    GrammarMask,
    LogitsProcessor,
    RawLogits,
    SeededSampler,
    check_sampling,
    processors_of,
    sampler_of,
)
from llmvisor_runtimes.mlx.vocabulary import Vocabulary
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.protocol import Generate, Resumed, TokenLogprob
from llmvisor_runtimes.resumption import ids_of_calls, sent_before
from llmvisor_runtimes.structured import Constraint

Cache = list[Any]
"""mlx-lm's caches of one sequence, one for each layer."""


class Request:
    """A request under way."""

    def __init__(self, generate: Generate, prompt: list[int]) -> None:
        self.id = generate.id
        self.generate = generate
        self.prompt = prompt
        self.usage = Usage()
        self.choices: list[Choice] = []
        """Those that have not ended."""
        self.prompt_cache: Cache | None = None
        """Of the prompt without its last token, once it is computed: the choices share it."""
        self.prompt_logprobs: list[TokenLogprob] = []
        """Those known so far, from the first token on; for an echo with log-probabilities."""

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of the prompt are wanted, so logits of each of its tokens are needed."""
        return self.generate.echo and self.generate.logprobs is not None


class Choice(ChoiceText):
    """One choice: it waits, its tokens are computed piece by piece, and then it decodes in the batch."""

    __slots__ = ("age", "cache", "computed", "mask", "processors", "raw", "request", "sampler", "uid", "unscored")

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        age: int,
        n_ctx: int,
        vocabulary: Vocabulary,
        seed: int,
        constraint: Constraint | None,
        format: OutputFormat,
    ) -> None:
        generate, prompt = request.generate, request.prompt
        resumed = sent_before(generate, index)
        parser = format.parser(generate, prompt, ids_of_calls(resumed))
        super().__init__(
            generate,
            prompt,
            index,
            n_ctx=n_ctx,
            vocabulary=vocabulary,
            usage=request.usage,
            parser=parser,
            marks=format.marks if constraint or parser else frozenset(),
        )
        self.request = request
        self.age = age
        """Counts choices: the one with the largest number came last."""
        self.uid: int | None = None
        """Its number in the batch generator, while it decodes."""
        self.cache: Cache | None = None
        """Its own, while it does not decode."""
        self.computed = 0
        """Tokens in the cache."""
        self.sampler = sampler_of(generate.sampling, seed, vocabulary)
        avoided = vocabulary.end_tokens if generate.ignore_eos else frozenset()
        self.mask = GrammarMask(constraint.matcher(), len(prompt), avoided) if constraint else None
        self.raw = RawLogits() if generate.logprobs is not None else None
        # With a grammar the end has to come where nothing else may.
        forbidden = frozenset() if self.mask else avoided
        processors = processors_of(generate.sampling, n_ctx=n_ctx, forbidden=forbidden)
        self.processors: list[LogitsProcessor] = [
            *([self.raw] if self.raw else []),
            *processors,
            *([self.mask] if self.mask else []),
        ]
        self.unscored: int | None = None
        """The first of the tokens that another worker chose whose log-probability is still wanted."""
        self._resume(resumed)

    def _resume(self, resumed: Resumed) -> None:
        """Go on behind what another worker has sent. Raises `RequestError`."""
        written = self.replay(resumed)
        if self.finish is not None:
            return
        if self.mask is not None:
            self.mask.repeat(written)
        if self.logprobs_held:
            self.unscored = len(self.tokens) - self.logprobs_held

    @property
    def scores(self) -> bool:
        """Log-probabilities of the prompt's tokens are still wanted of it."""
        request = self.request
        return request.scores_prompt and self.echo_due and len(request.prompt_logprobs) < len(request.prompt)

    @property
    def unread(self) -> int:
        """Tokens still to be computed before it can decode: the last one is for the batch."""
        return 0 if self.uid is not None else len(self.tokens) - 1 - self.computed

    def begin_decoding(self, uid: int) -> None:
        """It is in the batch from now on."""
        self.uid = uid
        self.cache = None
        if isinstance(self.sampler, SeededSampler):
            self.sampler.drawn = len(self.tokens) - len(self.request.prompt)

    def leave_batch(self, cache: Cache | None, computed: int) -> None:
        """It is in the batch no more, and goes on later from this cache."""
        self.uid = None
        self.cache = cache
        self.computed = computed


def make_request(
    generate: Generate,
    prompt: list[int],
    *,
    n_ctx: int,
    vocabulary: Vocabulary,
    age: int,
    constraint: Constraint | None,
    format: OutputFormat,
) -> Request:
    """A request with its choices, the first of which has this age.

    Raises `RequestError` where it can never be served.
    """
    check_prompt(prompt, n_ctx=n_ctx, vocabulary=vocabulary)
    check_sampling(generate.sampling, vocabulary)
    request = Request(generate, prompt)
    seed = secrets.randbits(32) if generate.sampling.seed is None else generate.sampling.seed
    for index in range(generate.n):
        choice = Choice(
            request,
            index,
            age=age + index,
            n_ctx=n_ctx,
            vocabulary=vocabulary,
            seed=seed + index,
            constraint=constraint,
            format=format,
        )
        if choice.finish is None:
            request.choices.append(choice)
    return request
