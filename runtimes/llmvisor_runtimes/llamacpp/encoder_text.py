"""Texts and pairs of texts as the tokens that an encoder reads, special ones included, and never too many of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.llamacpp.weights import Weights

_NONE = -1
_PLACES = re.compile(r"\{query\}|\{document\}")
_TRUNCATIONS_MAX = 8


class EncoderText:
    """Makes the inputs of one model. For one thread at a time."""

    def __init__(self, weights: Weights, *, tokens_max: int) -> None:
        vocabulary = self._vocabulary = weights.vocabulary
        self._tokens_max = tokens_max
        self.empty = vocabulary.tokenize_bytes(b"", add_special=True, parse_special=False)
        """The tokens that every text has around it."""
        leads = int(vocabulary.adds_bos and self.empty[:1] == [vocabulary.bos])
        self._before, self._after = self.empty[:leads], self.empty[leads:]
        template = llama_cpp.llama_model_chat_template(weights.pointer, b"rerank")
        self._template: str | None = template.decode("utf-8", "replace") if template else None
        self._pair_before, self._pair_between, self._pair_after = _pair_frame(vocabulary)

    def text(self, place: int, text: str | Sequence[int], *, truncate: bool) -> list[int]:
        """The tokens of a text, or of one that is given as tokens. Raises `RequestError` that names its `place`."""
        if isinstance(text, str):
            if len(text) > limits.tokenize_text_bytes_max:
                most = limits.tokenize_text_bytes_max
                raise RequestError("invalid_value", f"input {place} is longer than {most} bytes", "input")
            # As the tokenizers of transformers do, a special token's name is that token.
            tokens = self._vocabulary.tokenize(text, add_special=True, parse_special=True)
        else:
            self._vocabulary.check(text, "input")
            tokens = [*self._before, *text, *self._after]
        if not tokens:
            raise RequestError("invalid_value", f"input {place} is empty: it has no tokens", "input")
        excess = len(tokens) - self._tokens_max
        if excess > 0:
            if not truncate:
                raise self._too_long("input", place, len(tokens))
            end = len(tokens) - len(self._after)
            del tokens[max(0, end - excess) : end]
        return tokens[: self._tokens_max]

    def pair(self, place: int, query: str, document: str, *, truncate: bool) -> list[int]:
        """The tokens of a question and what may answer it. Raises `RequestError` that names its `place`."""
        if self._template is not None:
            return self._rendered(self._template, place, query, document, truncate=truncate)
        vocabulary = self._vocabulary
        asked = vocabulary.tokenize(query, add_special=False, parse_special=False)
        said = vocabulary.tokenize(document, add_special=False, parse_special=False)
        frame = len(self._pair_before) + len(self._pair_between) + len(self._pair_after)
        total = frame + len(asked) + len(said)
        if total > self._tokens_max:
            if not truncate:
                raise self._too_long("documents", place, total)
            room = max(0, self._tokens_max - frame)
            # The document gives way first, to a quarter of the room.
            asked = asked[: max(room - len(said), room - room // 4)]
            said = said[: room - len(asked)]
        return [*self._pair_before, *asked, *self._pair_between, *said, *self._pair_after][: self._tokens_max]

    def _rendered(self, template: str, place: int, query: str, document: str, *, truncate: bool) -> list[int]:
        """A pair in the words of the model's own template."""
        tries = 0
        while True:
            tries += 1
            texts = {"{query}": query, "{document}": document}
            prompt = _PLACES.sub(lambda found, texts=texts: texts[found[0]], template)
            tokens = self._vocabulary.tokenize(prompt, add_special=False, parse_special=True)
            excess = len(tokens) - self._tokens_max
            if excess <= 0:
                return tokens
            if not truncate or tries == _TRUNCATIONS_MAX:
                raise self._too_long("documents", place, len(tokens))
            # Cut text may come out as other tokens than before: so it is counted again.
            document, left = self._cut(document, excess)
            query, _ = self._cut(query, left)

    def _cut(self, text: str, tokens: int) -> tuple[str, int]:
        """A text without its last tokens, and how many more it would have needed."""
        if tokens <= 0:
            return text, 0
        own = self._vocabulary.tokenize(text, add_special=False, parse_special=False)
        kept = own[: max(0, len(own) - tokens)]
        return self._vocabulary.detokenize(kept), max(0, tokens - len(own))

    def _too_long(self, param: str, place: int, tokens: int) -> RequestError:
        what = "input" if param == "input" else "pair"
        return RequestError(
            "context_length_exceeded",
            f"{what} {place} has {tokens} tokens, and the model takes {self._tokens_max}",
            param,
        )


def _pair_frame(vocabulary: Vocabulary) -> tuple[list[int], list[int], list[int]]:
    """What stands before, between and after a pair, as in `[CLS] q [SEP] d [SEP]` or `<s> q </s></s> d </s>`.

    From what the vocabulary says of itself, as llama-server does it; but a text always has an end.
    """
    pointer = vocabulary.pointer
    sep: int = llama_cpp.llama_vocab_sep(pointer)
    eos = vocabulary.eos if vocabulary.eos != _NONE else sep
    ends = [eos] if llama_cpp.llama_vocab_get_add_eos(pointer) and eos != _NONE else []
    parts = [sep] if llama_cpp.llama_vocab_get_add_sep(pointer) and sep != _NONE else []
    return [vocabulary.bos] if vocabulary.adds_bos else [], ends + parts, ends or parts
