"""How the next token is chosen: llama.cpp's chain, or less where less gives the same."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.context import LlamaContext
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import Sampling

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp takes this seed for "choose one"; ours are always chosen already."""
_MIROSTAT_M = 100

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`llama_token_data`."""

Row = NDArray[np.float32]
Rows = NDArray[np.float32]
"""One row for each position."""


class Sampler:
    """Chooses one sequence's tokens; holds its random state and what penalties look back at.

    Greedy choice without penalties needs no chain: it is the largest logit, and llama.cpp's chain would first copy the
    whole vocabulary (60 µs a token where this takes 8).
    """

    def __init__(self, sampling: Sampling, *, seed: int, vocabulary: Vocabulary, n_ctx: int, ignore_eos: bool) -> None:
        """Raises `RequestError` for values that llama.cpp would end the process over."""
        _check(sampling, vocabulary)
        self.vocabulary_size = vocabulary.size
        biases = dict(sampling.logit_bias)
        forbidden = (*vocabulary.suppressed, *(vocabulary.end_tokens if ignore_eos else ()))
        biases.update((token, -math.inf) for token in forbidden)
        self._bias_tokens = np.fromiter(biases.keys(), dtype=np.intp, count=len(biases))
        self._bias_values = np.fromiter(biases.values(), dtype=np.float32, count=len(biases))
        self._chain: object = None
        self._candidates: NDArray[np.void] | None = None
        self._remembers = _remembered_tokens(sampling, n_ctx)
        self.draws = sampling.temperature > 0 and sampling.seed is not None
        """Its draws can be repeated."""
        self.follows_logits = sampling.temperature > 0 and (sampling.mirostat > 0 or (self.draws and _xtc(sampling)))
        """What it has become depends on the logits that it saw, not on the tokens alone."""
        if sampling.temperature > 0 or self._remembers:
            self._chain = _chain(sampling, _valid_seed(seed), vocabulary, n_ctx, biases)

    def remember(self, tokens: Sequence[int]) -> None:
        """Show the prompt to penalties and DRY, which look at it as at generated tokens."""
        for token in tokens[-self._remembers :] if self._remembers else ():
            llama_cpp.llama_sampler_accept(self._chain, token)

    def repeat(self, token: int, row: Row | None) -> None:
        """Become what it was after it had chosen this token, from `row` where it `follows_logits`."""
        if row is not None and self.follows_logits:
            self._apply(row, np.arange(row.size))
        elif self.draws:
            self._draw()
        self.accept(token)

    def repeat_among(self, token: int, row: Row | None, tokens: NDArray[np.intp]) -> None:
        """The same where the token was one of `tokens`."""
        if self.draws_among(tokens):
            if row is not None and self.follows_logits:
                self._apply(row, tokens)
            elif self.draws:
                self._draw()
        self.accept(token)

    def accept(self, token: int) -> None:
        """Show a token to what looks back."""
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def _draw(self) -> None:
        """Move the random state on: llama.cpp's `dist` draws one number for a token, whatever the candidates."""
        chain = self._chain
        dist = llama_cpp.llama_sampler_chain_get(chain, llama_cpp.llama_sampler_chain_n(chain) - 1)
        llama_cpp.llama_sampler_apply(dist, ctypes.byref(self._candidate_array(np.zeros(1, np.float32), np.arange(1))))

    def choose(self, context: LlamaContext, row: Row, output: int) -> int:
        """The next token from `row`, which are the logits of the batch's token number `output`."""
        if self._chain is not None:
            return llama_cpp.llama_sampler_sample(self._chain, context.pointer, output)
        if not self._bias_tokens.size:
            return int(row.argmax())
        raw = row[self._bias_tokens]
        row[self._bias_tokens] = raw + self._bias_values
        token = int(row.argmax())
        row[self._bias_tokens] = raw
        return token

    def choose_among(self, row: Row, tokens: NDArray[np.intp]) -> int:
        """The next token from `row`, one of `tokens`. A bias that forbids all of these does not count."""
        biases = self._bias_tokens
        if not self.draws_among(tokens):
            token = int(tokens[row[tokens].argmax()])
        elif self._chain is not None:
            token = self._apply(row, tokens)
        else:
            raw = row[biases]
            row[biases] = raw + self._bias_values
            token = int(tokens[row[tokens].argmax()])
            row[biases] = raw
        self.accept(token)
        return token

    def draws_among(self, tokens: NDArray[np.intp]) -> bool:
        """Whether there is anything to choose among these."""
        return tokens.size > 1 and not (np.isneginf(self._bias_values).any() and not self._permitted(tokens).size)

    def _permitted(self, tokens: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.setdiff1d(tokens, self._bias_tokens[np.isneginf(self._bias_values)], assume_unique=True)

    def _apply(self, row: Row, tokens: NDArray[np.intp]) -> int:
        """The token that the chain chooses, as `llama_sampler_sample`, which always takes the whole vocabulary.

        Candidates of probability 0 in place of those that are left out would make NaN of typical_p and of mirostat.
        """
        array = self._candidate_array(row, tokens)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _candidate_array(self, row: Row, tokens: NDArray[np.intp]) -> Any:  # noqa: ANN401 - a ctypes structure
        if self._candidates is None or self._candidates.size < row.size:
            self._candidates = np.zeros(row.size, dtype=_CANDIDATE)
        candidates = self._candidates[: tokens.size]
        candidates["id"] = tokens
        candidates["logit"] = row[tokens]
        data = ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p)
        return llama_cpp.llama_token_data_array(data=data, size=tokens.size, selected=-1, sorted=False)

    @property
    def finished(self) -> bool:
        """Never: what may come is not limited."""
        return False

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


def _chain(sampling: Sampling, seed: int, vocabulary: Vocabulary, n_ctx: int, biases: dict[int, float]) -> object:
    params = llama_cpp.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = llama_cpp.llama_sampler_chain_init(params)
    try:
        for sampler in _samplers(sampling, seed, vocabulary, n_ctx, biases):
            llama_cpp.llama_sampler_chain_add(chain, sampler)
    except BaseException:
        llama_cpp.llama_sampler_free(chain)
        raise
    return chain


def _samplers(
    sampling: Sampling, seed: int, vocabulary: Vocabulary, n_ctx: int, biases: dict[int, float]
) -> Iterator[object]:
    """llama.cpp's samplers in llama.cpp's order, without those that would change nothing; each made when it is due."""
    if biases:
        entries = (llama_cpp.llama_logit_bias * len(biases))(*biases.items())
        yield llama_cpp.llama_sampler_init_logit_bias(vocabulary.size, len(biases), entries)
    if _penalizes(sampling):
        yield llama_cpp.llama_sampler_init_penalties(
            vocabulary.size,
            _last_n(sampling.repeat_last_n, n_ctx),
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
    if _dry(sampling):
        yield _dry_sampler(sampling, vocabulary, n_ctx)
    if sampling.temperature <= 0:
        yield llama_cpp.llama_sampler_init_greedy()
    elif sampling.mirostat:
        yield from _mirostat_samplers(sampling, seed, vocabulary)
    else:
        yield from _truncating_samplers(sampling, seed)
        yield llama_cpp.llama_sampler_init_dist(seed)


def _truncating_samplers(sampling: Sampling, seed: int) -> Iterator[object]:
    if sampling.top_k > 0:
        yield llama_cpp.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield llama_cpp.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1)
    if _xtc(sampling):
        yield llama_cpp.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)
    yield llama_cpp.llama_sampler_init_temp(sampling.temperature)


def _mirostat_samplers(sampling: Sampling, seed: int, vocabulary: Vocabulary) -> Iterator[object]:
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    yield llama_cpp.llama_sampler_init_temp(sampling.temperature)
    if sampling.mirostat == 1:
        yield llama_cpp.llama_sampler_init_mirostat(vocabulary.size, seed, tau, eta, _MIROSTAT_M)
    else:
        yield llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _dry_sampler(sampling: Sampling, vocabulary: Vocabulary, n_ctx: int) -> object:
    breakers = [text.encode() for text in sampling.dry_sequence_breakers if text]
    return llama_cpp.llama_sampler_init_dry(
        vocabulary.pointer,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        _last_n(sampling.dry_penalty_last_n, n_ctx),
        (ctypes.c_char_p * max(1, len(breakers)))(*breakers),
        len(breakers),
    )


def _penalizes(sampling: Sampling) -> bool:
    changes = sampling.repeat_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    return changes and sampling.repeat_last_n != 0


def _dry(sampling: Sampling) -> bool:
    return sampling.dry_multiplier != 0 and sampling.dry_base >= 1 and sampling.dry_penalty_last_n != 0


def _xtc(sampling: Sampling) -> bool:
    return sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5


def _last_n(tokens: int, n_ctx: int) -> int:
    return n_ctx if tokens < 0 else min(tokens, n_ctx)


def _remembered_tokens(sampling: Sampling, n_ctx: int) -> int:
    """How far back anything in the chain looks."""
    penalties = _last_n(sampling.repeat_last_n, n_ctx) if _penalizes(sampling) else 0
    return max(penalties, _last_n(sampling.dry_penalty_last_n, n_ctx) if _dry(sampling) else 0)


def _valid_seed(seed: int) -> int:
    seed &= 0xFFFFFFFF
    return seed - 1 if seed == _RANDOM_SEED else seed


_FINITE = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "xtc_probability",
    "xtc_threshold",
)


def _check(sampling: Sampling, vocabulary: Vocabulary) -> None:
    """llama.cpp throws through C, which ends the process, where these are out of range."""
    for name in _FINITE:
        if not math.isfinite(getattr(sampling, name)):
            raise RequestError("invalid_value", f"{name} has to be a finite number", name)
    if sampling.repeat_penalty <= 0 or not math.isfinite(1 / sampling.repeat_penalty):
        raise RequestError("invalid_value", "repeat_penalty has to be greater than 0", "repeat_penalty")
    if any(math.isnan(value) for value in sampling.logit_bias.values()):
        raise RequestError("invalid_value", "logit_bias has a value that is no number", "logit_bias")
    vocabulary.check(list(sampling.logit_bias), "logit_bias")
