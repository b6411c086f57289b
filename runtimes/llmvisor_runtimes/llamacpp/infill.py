"""Filling in the middle: the tokens between which a model trained for it writes."""

from __future__ import annotations

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.protocol import InfillPrompt

_NONE = -1


class Infill:
    """A vocabulary's own tokens for it, those before the prefix, the suffix and the middle."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._prefix: int = llama_cpp.llama_vocab_fim_pre(vocabulary.pointer)
        self._suffix: int = llama_cpp.llama_vocab_fim_suf(vocabulary.pointer)
        self._middle: int = llama_cpp.llama_vocab_fim_mid(vocabulary.pointer)

    @property
    def available(self) -> bool:
        """Whether the model has these tokens."""
        return _NONE not in {self._prefix, self._suffix, self._middle}

    def tokens(self, prompt: InfillPrompt) -> list[int]:
        """The prompt in the order prefix, suffix, middle. Raises `RequestError` where the model has no such tokens.

        Special tokens in the two texts are text: a file of source code may well name them.
        """
        if not self.available:
            raise RequestError("unsupported_operation", "this model cannot fill in the middle", "suffix")
        vocabulary = self._vocabulary
        prefix, suffix = (
            vocabulary.tokenize(text, add_special=False, parse_special=False) for text in (prompt.prefix, prompt.suffix)
        )
        leading = [vocabulary.bos] if vocabulary.adds_bos else []
        return [*leading, self._prefix, *prefix, self._suffix, *suffix, self._middle]
