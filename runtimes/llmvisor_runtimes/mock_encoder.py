"""The mock's embeddings and scores: out of the words of a text alone, so that texts that share words are near.

A text's tokens are its bytes and one before and after them, as a real tokenizer has its special ones. Each word has a
vector of its own, made from its hash; a text's dense vector is the mean of its words', of length 1.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter, deque
from collections.abc import Callable

from llmvisor_runtimes import limits, mock_text
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Embed, Embedding, EmbeddingKind, Embeddings, Report, Score, Scores

DIMENSION = 64
SPECIAL_TOKENS = 2
VOCABULARY = 250_002
"""Token ids of sparse weights are below it."""
CAPABILITIES = ["embedding", "sparse", "colbert", "rerank"]
FRAME_ITEMS = 16
"""Embeddings in one frame."""

_WORD = re.compile(r"\w+")


class EncoderInputs:
    """A request's texts, checked, and how many tokens they have."""

    def __init__(self, texts: list[str], tokens: list[int]) -> None:
        self.texts = texts
        self.tokens = tokens


class MockEncoder:
    """Requests for embeddings and scores, answered in turn: interactive ones first, a text or pair at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.delay_seconds = 0.0
        """How long each text or pair takes."""
        self.n_ctx = 0
        self._clock = clock
        self._queue: deque[_Work] = deque()

    def prepare(self, request: Embed | Score) -> EncoderInputs:
        """Raises `RequestError` for token ids that are none and for texts that are too long."""
        if isinstance(request, Score):
            texts = [f"{query}\n{document}" for query, document in request.pairs]
            names = [f"pairs[{number}]" for number in range(len(texts))]
        else:
            names = [f"input[{number}]" for number in range(len(request.inputs))]
            texts = [_text(given, name) for given, name in zip(request.inputs, names, strict=True)]
        room = max(0, self.n_ctx - SPECIAL_TOKENS)
        for number, name in enumerate(names):
            raw = texts[number].encode()
            if len(raw) > room and not request.truncate:
                message = f"{name} has {len(raw) + SPECIAL_TOKENS} tokens, the model takes {self.n_ctx}"
                raise RequestError("context_length_exceeded", message, name)
            if isinstance(request, Embed):
                texts[number] = raw[:room].decode(errors="ignore")
        counts = [min(len(text.encode()), room) + SPECIAL_TOKENS for text in texts]
        return EncoderInputs(texts, counts)

    def encode(self, request: Embed | Score, inputs: EncoderInputs) -> None:
        work = _Work(request, inputs, due=self._clock() + self.delay_seconds)
        if request.lane == "bulk":
            self._queue.append(work)
        else:
            ahead = sum(waiting.request.lane == "interactive" or waiting.begun for waiting in self._queue)
            self._queue.insert(ahead, work)

    def cancel(self, id: int) -> None:
        """End a request with an empty last frame; the engine thread alone calls it."""
        for work in self._queue:
            work.cancelled = work.cancelled or work.request.id == id

    def wait_seconds(self) -> float | None:
        """Until `step` has something to do; None without a request."""
        if not self._queue:
            return None
        if any(work.cancelled for work in self._queue):
            return 0.0
        return min(max(0.0, self._queue[0].due - self._clock()), limits.mock_step_seconds_max)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self) -> list[Report]:
        """What is due by now."""
        reports: list[Report] = []
        for work in [work for work in self._queue if work.cancelled]:
            self._queue.remove(work)
            reports.append(Embeddings(work.request.id, 0, [], last=True))
        while self._queue and self._queue[0].due <= self._clock():
            work = self._queue[0]
            count = 1 if self.delay_seconds else FRAME_ITEMS
            reports += work.advance(count)
            work.due += self.delay_seconds
            if work.ended:
                self._queue.popleft()
                if self._queue and self.delay_seconds:
                    self._queue[0].due = self._clock() + self.delay_seconds
        return reports


class _Work:
    """A request under way."""

    def __init__(self, request: Embed | Score, inputs: EncoderInputs, *, due: float) -> None:
        self.request = request
        self.due = due
        self.cancelled = False
        self._inputs = inputs
        self._done = 0

    @property
    def begun(self) -> bool:
        return self._done > 0

    @property
    def ended(self) -> bool:
        return self._done >= len(self._inputs.texts)

    def advance(self, count: int) -> list[Report]:
        first, request = self._done, self.request
        self._done = min(first + count, len(self._inputs.texts))
        if isinstance(request, Score):
            if not self.ended:
                return []
            scores = [score(query, document) for query, document in request.pairs]
            return [Scores(request.id, scores, sum(self._inputs.tokens))]
        items = [
            embedding(self._inputs.texts[number], self._inputs.tokens[number], request.kinds)
            for number in range(first, self._done)
        ]
        return [Embeddings(request.id, first, items, last=self.ended)]


def words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def score(query: str, document: str) -> float:
    """A logit: -4 where the document has none of the query's words, 4 where it has all."""
    asked = set(words(query))
    return 8.0 * len(asked & set(words(document))) / max(1, len(asked)) - 4.0


def embedding(text: str, tokens: int, kinds: list[EmbeddingKind]) -> Embedding:
    """A text's vectors of these kinds."""
    found = words(text)
    vectors = [_word_vector(word) for word in found] or [_unit([1.0] + [0.0] * (DIMENSION - 1))]
    counts = Counter(found)
    return Embedding(
        tokens=tokens,
        dense=_unit([sum(values) for values in zip(*vectors, strict=True)]).tobytes() if "dense" in kinds else b"",
        sparse={_word_id(word): round(0.25 + 0.25 * min(count, 3), 3) for word, count in counts.items()}
        if "sparse" in kinds
        else {},
        colbert=b"".join(vector.tobytes() for vector in vectors) if "colbert" in kinds else b"",
        colbert_vectors=len(vectors) if "colbert" in kinds else 0,
    )


def _text(given: str | list[int], name: str) -> str:
    if isinstance(given, str):
        return given
    try:
        return b"".join(mock_text.piece(token) for token in given).decode(errors="replace")
    except ValueError as error:
        raise RequestError("invalid_value", f"{name}: {error}", name) from error


def _word_vector(word: str) -> array[float]:
    digest = hashlib.blake2b(word.encode(), digest_size=DIMENSION).digest()
    return _unit([byte - 127.5 for byte in digest])


def _word_id(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % VOCABULARY


def _unit(values: list[float]) -> array[float]:
    length = math.hypot(*values) or 1.0
    return array("f", [value / length for value in values])
