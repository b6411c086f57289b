"""One request and its choices: where they stand in the KV cache, and how their tokens are chosen."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.choice import ChoiceText, Usage, check_prompt
from llmvisor_runtimes.llamacpp.constrained import Chooser, ConstrainedSampler
from llmvisor_runtimes.llamacpp.media_encoder import Unit
from llmvisor_runtimes.llamacpp.media_prompt import MediaPrompt
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.llamacpp.sampling import Sampler
from llmvisor_runtimes.llamacpp.speculative import Drafter
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.output_format import OutputFormat
from llmvisor_runtimes.protocol import Generate, Resumed, TokenLogprob
from llmvisor_runtimes.resumption import ids_of_calls, sent_before
from llmvisor_runtimes.structured import Constraint


class Request(Usage):
    """A request under way."""

    __slots__ = ("adapters", "choices", "generate", "prompt", "prompt_logprobs", "units")

    def __init__(self, generate: Generate, prompt: list[int]) -> None:
        super().__init__()
        self.generate = generate
        self.prompt = prompt
        self.units = prompt.units if isinstance(prompt, MediaPrompt) else ()
        """Its images and sounds."""
        self.choices: list[Choice] = []
        """Those that have not ended."""
        self.adapters: AdapterSet = ()
        self.prompt_logprobs: list[TokenLogprob] = []
        """Those known so far, from the first token on; for an echo with log-probabilities."""

    @property
    def id(self) -> int:
        return self.generate.id

    @property
    def scores_prompt(self) -> bool:
        """Log-probabilities of the prompt are wanted, so logits of each of its tokens are needed."""
        return self.generate.echo and self.generate.logprobs is not None


def make_request(
    generate: Generate,
    prompt: list[int],
    *,
    n_ctx: int,
    vocabulary: Vocabulary,
    age: int,
    format: OutputFormat,
    constraint: Constraint | None = None,
) -> Request:
    """A request with its choices, the first of which has this age; `constraint` says what each one's text has to be.

    Raises `RequestError` where it can never be served.
    """
    written = prompt.written if isinstance(prompt, MediaPrompt) else prompt
    check_prompt(written, n_ctx=n_ctx, vocabulary=vocabulary, length=len(prompt))
    request = Request(generate, prompt)
    if request.units and generate.echo:
        raise RequestError("unsupported_operation", "a prompt with images or sounds is not echoed", "echo")
    sampling = generate.sampling
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    with ExitStack() as made:
        for index in range(generate.n):
            sampler = Sampler(
                sampling, seed=seed + index, vocabulary=vocabulary, n_ctx=n_ctx, ignore_eos=generate.ignore_eos
            )
            made.callback(sampler.close)
            sampler.remember(written)
            chooser = ConstrainedSampler(sampler, constraint.matcher()) if constraint else sampler
            choice = Choice(
                request, index, age=age + index, n_ctx=n_ctx, sampler=chooser, vocabulary=vocabulary, format=format
            )
            if choice.finish is None:
                request.choices.append(choice)
            else:
                sampler.close()
        made.pop_all()  # each is freed with its choice from here on
    return request


class Choice(ChoiceText):
    """One choice: a sequence of the KV cache while it has a slot, and tokens to be computed at any time."""

    __slots__ = ("_seeded", "age", "computed", "drafter", "request", "sampler", "scores", "sequence", "unrepeated")

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        age: int,
        n_ctx: int,
        sampler: Chooser,
        vocabulary: Vocabulary,
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
            usage=request,
            parser=parser,
            marks=format.marks if parser or isinstance(sampler, ConstrainedSampler) else frozenset(),
        )
        self.request = request
        self.age = age
        """Counts choices: the one with the largest number came last."""
        self.sampler = sampler
        self.sequence = -1
        self.computed = 0
        """How many of the tokens are in the KV cache."""
        self.drafter: Drafter | None = None
        """Guesses its next tokens, where that is wanted."""
        self.unrepeated: int | None = None
        """The first of the tokens that another worker chose from logits that are still needed."""
        self._resume(resumed)
        self.scores = request.scores_prompt and self.echo_due
        """Logits of each token of the prompt are still needed."""
        self._seeded = generate.sampling.seed is not None

    def _resume(self, resumed: Resumed) -> None:
        """Go on behind what another worker has sent. Raises `RequestError`."""
        written = self.replay(resumed)
        if not written or self.finish is not None:
            return
        if self.sampler.follows_logits:
            self.unrepeated = len(self.tokens) - len(written)
            return
        for token in written:
            self.sampler.repeat(token, None)
        if self.logprobs_held:
            self.unrepeated = len(self.tokens) - self.logprobs_held

    @property
    def wants_rows(self) -> bool:
        """Logits of each token that is computed next are needed, not of the last alone."""
        return self.scores or (self.unrepeated is not None and self.computed >= self.unrepeated - 1)

    @property
    def unit(self) -> Unit | None:
        """The first image or sound that is not wholly computed."""
        return next((unit for unit in self.request.units if unit.end > self.computed), None)

    @property
    def missing_unit(self) -> Unit | None:
        """The first that is neither computed nor encoded."""
        return next((unit for unit in self.request.units if unit.end > self.computed and unit.embeddings is None), None)

    @property
    def position(self) -> int:
        """Where its next token stands in the context."""
        position = self.computed
        for unit in self.request.units:
            if unit.end > self.computed:
                break
            position -= unit.chunk.length - unit.chunk.positions
        return position

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def next_count(self) -> int:
        """Tokens that may be computed together next.

        With a seed the last token of a prompt is computed alone: as it is when the rest comes from the cache the next
        time. In one batch with the others its logits would differ by float noise, and the same seed give another text.

        0 while an image that comes next is being encoded. Text and images do not share a batch.
        """
        count = len(self.tokens) - self.computed
        if self.request.units and (unit := self.unit) is not None:
            if self.computed < unit.start:
                return unit.start - self.computed
            return 0 if unit.embeddings is None else unit.end - self.computed
        if self.unrepeated is not None and self.computed < self.unrepeated - 1:
            return self.unrepeated - 1 - self.computed
        return count - 1 if count > 1 and self._seeded else count

    @property
    def draft_tokens_max(self) -> int:
        """Tokens that are worth guessing now: none before the first that is sampled, nor beyond the last."""
        if (
            self.drafter is None
            or len(self.tokens) - self.computed != 1
            or len(self.tokens) == len(self.request.prompt)
        ):
            return 0
        return min(self.drafter.wanted, self.tokens_left - 1)

    @property
    def reuse_max(self) -> int:
        """Tokens that may come from the cache: not the last, whose logits are needed, and none that is to be scored."""
        if not self.request.generate.cache_prompt:
            return 0
        if self.scores:
            return max(0, len(self.request.prompt_logprobs) - 1)
        if self.unrepeated is not None:
            return self.unrepeated - 1
        return len(self.tokens) - 1
