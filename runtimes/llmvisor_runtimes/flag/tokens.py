"""Texts and pairs of texts as the tokens that a model reads, exactly counted, cut only where that is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import EmbeddingKind


class Tokenized(msgspec.Struct, frozen=True):
    """One input of a model."""

    ids: list[int]
    """Special tokens included."""
    types: list[int] | None = None
    """Which of the two texts of a pair each token is of, for models that want to know."""
    kinds: tuple[EmbeddingKind, ...] = ()
    """What is wanted of a text that is embedded."""

    @property
    def key(self) -> tuple[bytes, bytes, tuple[EmbeddingKind, ...]]:
        """Equal for inputs with equal results."""
        return array("I", self.ids).tobytes(), bytes(self.types or b""), self.kinds


class Encoding(Protocol):
    """What the `tokenizers` library gives for one text."""

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]


class Tokenizer(Protocol):
    """`tokenizers.Tokenizer`, as far as it is used."""

    def encode_batch(
        self, input: Sequence[str | tuple[str, str]], add_special_tokens: bool = True
    ) -> list[Encoding]: ...
    def no_truncation(self) -> None: ...
    def no_padding(self) -> None: ...
    def get_vocab_size(self, with_added_tokens: bool = True) -> int: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Texts:
    """Makes the inputs of an embedding model."""

    def __init__(self, tokenizer: Tokenizer, *, length_max: int, with_types: bool, instruction: str = "") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._length_max = length_max
        self.with_types = with_types
        self._instruction = instruction
        self._vocabulary = tokenizer.get_vocab_size()
        (around,) = tokenizer.encode_batch(["a"])
        mask = list(around.special_tokens_mask)
        begin = mask.index(0) if 0 in mask else len(mask)
        end = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
        self._prefix, self._suffix = around.ids[:begin], around.ids[end:]
        """The special tokens around a text."""

    def prepare(
        self, inputs: Sequence[str | list[int]], kinds: Sequence[EmbeddingKind], *, truncate: bool
    ) -> list[Tokenized]:
        """Each input's tokens. Raises `RequestError` for one that is too long, empty of tokens, or of unknown ids."""
        wanted = tuple(sorted(set(kinds)))
        texts = [self._instruction + input for input in inputs if isinstance(input, str)]
        ids_of_texts = iter(encode_in_slices(self._tokenizer, texts, lambda encoding: encoding.ids))
        prepared: list[Tokenized] = []
        for index, input in enumerate(inputs):
            ids = next(ids_of_texts) if isinstance(input, str) else self._around(input, index)
            if len(ids) > self._length_max:
                ids = self._cut(ids, index, truncate=truncate)
            if not ids:
                raise RequestError("invalid_value", f"input {index} has no tokens", "input")
            prepared.append(Tokenized(ids, [0] * len(ids) if self.with_types else None, wanted))
        return prepared

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """The tokens of one text."""
        check_bytes([text])
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special)
        return encoding.ids

    def detokenize(self, tokens: Sequence[int]) -> tuple[str, list[bytes]]:
        """The text of token ids, and of each alone. Raises `RequestError` for an id that there is not."""
        self._check_ids(tokens, "tokens")
        decode = self._tokenizer.decode
        return decode(tokens, skip_special_tokens=False), [
            decode([token], skip_special_tokens=False).encode() for token in tokens
        ]

    def _around(self, tokens: list[int], index: int) -> list[int]:
        self._check_ids(tokens, f"input {index}")
        return [*self._prefix, *tokens, *self._suffix]

    def _check_ids(self, tokens: Sequence[int], what: str) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
            raise RequestError("invalid_value", f"{what} has token ids outside 0 to {self._vocabulary - 1}", "input")

    def _cut(self, ids: list[int], index: int, *, truncate: bool) -> list[int]:
        """The beginning of a text, its closing special tokens kept, as tokenizers truncate."""
        if not truncate:
            raise too_long(f"input {index}", len(ids), self._length_max, "input")
        kept = self._length_max - len(self._suffix)
        return ids[:kept] + ids[len(ids) - len(self._suffix) :]


class Pairs:
    """Makes the inputs of a cross-encoder."""

    def __init__(self, tokenizer: Tokenizer, *, length_max: int, with_types: bool, instruction: str = "") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._length_max = length_max
        self._with_types = with_types
        self._instruction = instruction
        self._learn_around()

    def prepare(self, pairs: Sequence[tuple[str, str]], *, truncate: bool) -> list[Tokenized]:
        """Each pair's tokens. Raises `RequestError` for one that is too long."""
        texts = [(self._instruction + first, second) for first, second in pairs]
        encoded = encode_in_slices(self._tokenizer, texts, lambda encoding: (encoding.ids, encoding.type_ids))
        prepared: list[Tokenized] = []
        for index, (ids, types) in enumerate(encoded):
            if len(ids) > self._length_max:
                if not truncate:
                    raise too_long(f"pair {index}", len(ids), self._length_max, "documents")
                prepared.append(self._shortened(*texts[index]))
            else:
                prepared.append(Tokenized(ids, types if self._with_types else None))
        return prepared

    def _shortened(self, first: str, second: str) -> Tokenized:
        """The query keeps at most three quarters, the document gives way; FlagEmbedding's `FlagReranker` does so."""
        query, document = self._tokenizer.encode_batch([first, second], add_special_tokens=False)
        around = self._around
        query_ids = query.ids[: self._length_max * 3 // 4]
        room = self._length_max - len(query_ids) - sum(len(part) for part in around)
        document_ids = document.ids[: max(0, room)]
        begin, middle, end = around
        ids = [*begin, *query_ids, *middle, *document_ids, *end]
        second_from = len(ids) - len(document_ids) - len(end)
        types = [self._first_type] * second_from + [self._second_type] * (len(ids) - second_from)
        return Tokenized(ids, types if self._with_types else None)

    def _learn_around(self) -> None:
        """Find the special tokens before, between and behind the two texts of a pair."""
        (alone,) = self._tokenizer.encode_batch(["a"], add_special_tokens=False)
        (pair,) = self._tokenizer.encode_batch([("a", "a")])
        mask, length = list(pair.special_tokens_mask), len(alone.ids)
        begin = mask.index(0)
        end = len(mask) - mask[::-1].index(0)
        self._around = (pair.ids[:begin], pair.ids[begin + length : end - length], pair.ids[end:])
        self._first_type, self._second_type = pair.type_ids[begin], pair.type_ids[end - 1]


class Questions:
    """Makes the inputs of an LLM reranker: query, document, and a question to be answered with Yes.

    The tokens are those of FlagEmbedding's `compute_score`: `A: query`, a line break, `B: document`, a line break, the
    question.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, length_max: int, begin: Sequence[int], question: str, instruction: str = ""
    ) -> None:
        """`begin` are the tokens that every input begins with."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._length_max = length_max
        self._begin = list(begin)
        self._instruction = instruction
        self._line_break = self._ids(["\n"])[0]
        self._question = self._line_break + self._ids([question])[0]

    def prepare(self, pairs: Sequence[tuple[str, str]], *, truncate: bool) -> list[Tokenized]:
        """Each pair's tokens. Raises `RequestError` for one that is too long."""
        queries = self._ids([f"A: {self._instruction}{query}" for query, _ in pairs])
        documents = self._ids([f"B: {document}" for _, document in pairs])
        room = self._length_max - len(self._question)
        prepared: list[Tokenized] = []
        for index, (query, document) in enumerate(zip(queries, documents, strict=True)):
            first, second = self._begin + query, self._line_break + document
            if len(first) + len(second) > room:
                if not truncate:
                    length = len(first) + len(second) + len(self._question)
                    raise too_long(f"pair {index}", length, self._length_max, "documents")
                first = self._begin + query[: room * 3 // 4]
                second = second[: max(0, room - len(first))]
            prepared.append(Tokenized(first + second + self._question))
        return prepared

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return encode_in_slices(self._tokenizer, texts, lambda encoding: encoding.ids, add_special_tokens=False)


T = TypeVar("T")


def encode_in_slices(
    tokenizer: Tokenizer,
    texts: Sequence[str | tuple[str, str]],
    take: Callable[[Encoding], T],
    *,
    add_special_tokens: bool = True,
) -> list[T]:
    """What `take` gives for each text, a few hundred at a time: encodings hold much more than ids."""
    check_bytes([text for each in texts for text in ([each] if isinstance(each, str) else each)])
    size = limits.tokenize_slice_texts
    return [
        take(encoding)
        for start in range(0, len(texts), size)
        for encoding in tokenizer.encode_batch(texts[start : start + size], add_special_tokens=add_special_tokens)
    ]


def check_bytes(texts: Sequence[str]) -> None:
    """Raises `RequestError` for texts that are too long to look at."""
    for text in texts:
        if len(text) > limits.tokenize_text_bytes_max:
            raise RequestError("invalid_value", f"a text is over {limits.tokenize_text_bytes_max} bytes", "input")


def too_long(what: str, tokens: int, most: int, param: str) -> RequestError:
    """The refusal of an input of so many tokens."""
    return RequestError(
        "context_length_exceeded", f"{what} has {tokens} tokens, over the model's {most}; it can be truncated", param
    )
