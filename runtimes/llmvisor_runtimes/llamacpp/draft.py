"""A small model beside the large one, that guesses what it is going to say."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError
from llmvisor_runtimes.llamacpp.adapters import check_gguf
from llmvisor_runtimes.llamacpp.context import DECODED, LlamaContext, Part
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.sampling import Row
from llmvisor_runtimes.llamacpp.speculative import DraftPace
from llmvisor_runtimes.llamacpp.weights import Weights
from llmvisor_runtimes.prefill import common_prefix


class DraftModel:
    """A loaded draft model with a context of its own, in which each sequence that guesses has one, too."""

    def __init__(self, weights: Weights, path: str, *, n_gpu_layers: int, params: object, slots: int) -> None:
        """`params` are those of the large model's context. Raises `LoadError`, for another vocabulary too."""
        what = f"the draft model ({path})"
        file = Path(path).expanduser()
        check_gguf(file, what)
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(file), model_params)
        if not self._model:
            raise weights.failure(f"{what} cannot be loaded")
        try:
            self._check(weights, what)
            self.context = LlamaContext(self._model, params, n_vocab=weights.vocabulary.size)
        except MemoryError:
            llama_cpp.llama_model_free(self._model)
            raise weights.failure(f"there is no room for the context of {what}") from None
        except LoadError:
            llama_cpp.llama_model_free(self._model)
            raise
        self._free = list(range(slots))

    @property
    def weights_bytes(self) -> int:
        return llama_cpp.llama_model_size(self._model)

    def take_sequence(self) -> int | None:
        """A sequence id; None where all are taken."""
        return self._free.pop() if self._free else None

    def give_back(self, sequence: int) -> None:
        """Forget a sequence."""
        self.context.remove(sequence, 0)
        self._free.append(sequence)

    def close(self) -> None:
        self.context.close()
        llama_cpp.llama_model_free(self._model)

    def _check(self, weights: Weights, what: str) -> None:
        if llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model):
            raise LoadError(f"{what} is recurrent: it cannot take back what it guessed wrong", permanent=True)
        if llama_cpp.llama_model_has_encoder(self._model):
            raise LoadError(f"{what} does not generate text by itself", permanent=True)
        own, other = llama_cpp.llama_model_get_vocab(self._model), weights.vocabulary.pointer
        sizes = llama_cpp.llama_vocab_n_tokens(own), weights.vocabulary.size
        if sizes[0] != sizes[1]:
            raise LoadError(
                f"{what} has {sizes[0]} tokens, the model {sizes[1]}: they have to be the same", permanent=True
            )
        text = llama_cpp.llama_vocab_get_text
        different = next((token for token in range(sizes[0]) if text(own, token) != text(other, token)), None)
        if different is not None:
            raise LoadError(f"{what} has another vocabulary than the model: token {different} differs", permanent=True)


class ModelDrafter:
    """Guesses with a draft model what it finds likely, the likeliest token each time."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._pace = DraftPace(tokens_max=limits.draft_model_tokens_max)
        self._sequence: int | None = None
        self._computed: list[int] = []
        """Tokens that the draft model's context holds."""

    @property
    def wanted(self) -> int:
        return 0 if self._pace.resting else self._pace.tokens

    def observe(self, drafted: int, accepted: int) -> None:
        self._pace.observe(drafted, accepted)

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        if self._sequence is None:
            self._sequence = self._model.take_sequence()
        if self._sequence is None or not self._catch_up(self._sequence, tokens):
            return []
        draft: list[int] = []
        while len(draft) < count:
            row = self._model.context.logits(1)[0]
            token = int(row.argmax())
            # What it does not find likely itself is not worth the place in the batch.
            if math.exp(-_log_sum_exp(row - row[token])) < limits.draft_probability_min:
                break
            draft.append(token)
            if len(draft) < count and not self._compute(self._sequence, [token]):
                break
        return draft

    def close(self) -> None:
        if self._sequence is not None:
            self._model.give_back(self._sequence)
            self._sequence = None

    def _catch_up(self, sequence: int, tokens: Sequence[int]) -> bool:
        """Compute what is not yet; False where that takes more than this step, so that nobody else waits for it."""
        same = min(common_prefix(self._computed, tokens), len(tokens) - 1)
        if same < len(self._computed):
            self._model.context.remove(sequence, same)
            del self._computed[same:]
        missing = list(tokens[same : same + self._model.context.n_batch])
        return self._compute(sequence, missing) and len(self._computed) == len(tokens)

    def _compute(self, sequence: int, tokens: list[int]) -> bool:
        position = len(self._computed)
        part = Part(sequence, position, tokens, every_logit=False, last_logit=True)
        if self._model.context.decode([part]) != DECODED:
            self._model.context.remove(sequence, 0)
            self._computed.clear()
            return False
        self._computed += tokens
        return True


def _log_sum_exp(row: Row) -> float:
    """Of logits whose largest is 0."""
    return math.log(float(np.exp(row).sum()))
