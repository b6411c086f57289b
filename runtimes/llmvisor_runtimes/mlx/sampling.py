"""How the next token is chosen: mlx-lm's samplers and logits processors, and log-probabilities."""

# pyright: standard
# mlx and mlx-lm ship no complete types.

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import greedy_sampler, make_logits_processors, make_sampler

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.mlx.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Sampling
from llmvisor_runtimes.resumption import not_resumable
from llmvisor_runtimes.structured import Matcher

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

_TOP_P_LEAST = 1e-6
"""mlx-lm takes a `top_p` of 0 for "off", where it means the likeliest token alone."""
_BIAS_MAX = 1e9
_LOGIT_LEAST = -1e30
_FINITE = (
    "temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "xtc_probability",
    "xtc_threshold",
)  # fmt: skip
_WITHOUT_MEANING = ("typical_p", "mirostat", "dry_multiplier")
"""What switches on the samplers that mlx-lm does not have."""


def check_sampling(sampling: Sampling, vocabulary: Vocabulary) -> None:
    """Raises `RequestError`, for samplers that MLX does not have too."""
    default = Sampling()
    for name in _WITHOUT_MEANING:
        if getattr(sampling, name) != getattr(default, name):
            raise RequestError("unsupported_operation", f"the mlx backend has no {name}", name)
    for name in _FINITE:
        if not math.isfinite(getattr(sampling, name)):
            raise RequestError("invalid_value", f"{name} has to be a finite number", name)
    if sampling.repeat_penalty <= 0:
        raise RequestError("invalid_value", "repeat_penalty has to be greater than 0", "repeat_penalty")
    if not 0 <= sampling.min_p <= 1:
        raise RequestError("invalid_value", "min_p has to be between 0 and 1", "min_p")
    if not 0 <= sampling.xtc_probability <= 1 or sampling.xtc_threshold < 0:
        raise RequestError("invalid_value", "xtc_probability has to be between 0 and 1", "xtc_probability")
    if any(math.isnan(value) for value in sampling.logit_bias.values()):
        raise RequestError("invalid_value", "logit_bias has a value that is no number", "logit_bias")
    vocabulary.check(list(sampling.logit_bias), "logit_bias")


def sampler_of(sampling: Sampling, seed: int, vocabulary: Vocabulary) -> Sampler:
    """mlx-lm's sampler for these settings; greedy ones are one and the same, so that they choose in one call."""
    if sampling.temperature <= 0:
        return greedy_sampler
    with_xtc = sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5
    chosen = make_sampler(
        temp=sampling.temperature,
        top_p=max(sampling.top_p, _TOP_P_LEAST) if sampling.top_p < 1 else 0.0,
        min_p=sampling.min_p,
        top_k=sampling.top_k if 0 < sampling.top_k < vocabulary.size else 0,
        xtc_probability=sampling.xtc_probability if with_xtc else 0.0,
        xtc_threshold=sampling.xtc_threshold,
    )
    return SeededSampler(chosen, seed)


class SeededSampler:
    """A sampler whose choice depends on its seed and the place in the text alone, whoever else is in the batch.

    mlx-lm's samplers draw from one global state, which is set before each draw.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self._sampler = sampler
        self._seed = (seed & 0xFFFFFFFF) << 32
        self.drawn = 0
        """Tokens chosen so far."""

    def __call__(self, logprobs: mx.array) -> mx.array:
        mx.random.seed(self._seed | self.drawn)
        self.drawn += 1
        return self._sampler(logprobs)


def processors_of(sampling: Sampling, *, n_ctx: int, forbidden: frozenset[int]) -> list[LogitsProcessor]:
    """mlx-lm's logits processors for these settings; `forbidden` tokens are never chosen."""
    biases = {token: max(-_BIAS_MAX, min(_BIAS_MAX, value)) for token, value in sampling.logit_bias.items()}
    biases |= dict.fromkeys(forbidden, -math.inf)
    looks_back = n_ctx if sampling.repeat_last_n < 0 else sampling.repeat_last_n
    penalizes = looks_back > 0
    return make_logits_processors(
        logit_bias=biases or None,
        repetition_penalty=sampling.repeat_penalty if penalizes and sampling.repeat_penalty != 1 else None,
        repetition_context_size=looks_back,
        presence_penalty=(sampling.presence_penalty or None) if penalizes else None,
        presence_context_size=looks_back,
        frequency_penalty=(sampling.frequency_penalty or None) if penalizes else None,
        frequency_context_size=looks_back,
    )


class RawLogits:
    """Keeps the logits of one sequence as the model gave them, until its token comes out of the batch."""

    def __init__(self) -> None:
        self._rows: dict[int, mx.array] = {}

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        # A row of its own: the processors that follow change `logits` in place.
        self._rows[context.size] = logits[0]
        return logits

    def take(self, place: int) -> np.ndarray:
        """The logits that the token at this place of the sequence was chosen from."""
        row = self._rows.pop(place)
        return as_numpy(row)


class GrammarMask:
    """Lets a sequence be continued by what its grammar allows alone, whatever biases and penalties say."""

    def __init__(self, matcher: Matcher, prompt_tokens: int, avoided: Collection[int] = ()) -> None:
        """`avoided` tokens come only where the grammar allows nothing else."""
        self.error: Exception | None = None
        """The grammar turned out to need too much, or to lead nowhere: the request has failed."""
        self._matcher = matcher
        self._seen = prompt_tokens
        self._ended = False
        self._avoided = np.fromiter(avoided, dtype=np.intp, count=len(avoided))

    @property
    def complete(self) -> bool:
        """After the tokens seen nothing may follow but the end."""
        return self._ended or self._matcher.finished

    def repeat(self, tokens: list[int]) -> None:
        """Take in what another worker wrote behind the prompt. Raises `RequestError` where that is not allowed."""
        for token in tokens:
            if self.complete or not self._matcher.consume(token):
                raise not_resumable(f"the grammar does not allow token {token}, which has been sent")
        self._seen += len(tokens)

    def _consume(self, context: mx.array) -> None:
        """The tokens that have come since the last call."""
        new = context.size - self._seen
        if new > 0 and self.error is None:
            self._seen = context.size
            for token in np.array(context[-new:]):
                self._ended = self._ended or not self._matcher.consume(int(token))

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        try:
            self._consume(context)
            # The batch is one token ahead of what has been reported: after the end comes one that nobody sees.
            if self.complete or self.error is not None:
                return logits
            words = np.frombuffer(bytes(self._matcher.mask()), dtype=np.uint8)
        except Exception as error:  # noqa: BLE001 - of one sequence alone, the batch goes on
            self.error = error
            return logits
        allowed = np.zeros(logits.shape[-1], dtype=bool)
        bits = np.unpackbits(words, bitorder="little", count=min(allowed.size, 8 * words.size))
        allowed[: bits.size] = bits
        if self._avoided.size:
            others = allowed.copy()
            others[self._avoided] = False
            allowed = others if others.any() else allowed
        # Where a bias forbids all that the grammar allows, the grammar has the last word.
        return mx.where(mx.array(allowed), mx.maximum(logits.astype(mx.float32), _LOGIT_LEAST), -math.inf)


def as_numpy(row: mx.array) -> np.ndarray:
    """Logits as float32 on this side."""
    return np.array(row.astype(mx.float32))
