"""A Service that follows a script: what the HTTP front is tested and measured against, without a worker."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Self

import msgspec

from llmvisor.control.api import ModelStatus
from llmvisor.errors import LlmvisorError, ModelNotFound
from llmvisor.services.service import (
    CacheState,
    Embedded,
    EmbeddingRequest,
    Generation,
    ModelIdentity,
    Scored,
    ScoringRequest,
)
from llmvisor_runtimes.protocol import (
    ChatPrompt,
    Delta,
    Done,
    Embedding,
    FinishReason,
    InfillPrompt,
    Prompt,
    Sampling,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    TopLogprob,
)

LIGHT = ModelStatus(
    id="light/smol",
    name="smol",
    tier="light",
    aliases=["tiny"],
    service="local",
    backend="mock",
    state="loaded",
    path="/models/smol.gguf",
    size=98_000_000,
    context_length=8192,
    n_ctx=4096,
    capabilities=["chat", "completions", "tokenize"],
    created=1_700_000_000,
    loaded_at="2026-01-01T00:00:00Z",
)
PLAIN = ModelStatus(
    id="plain",
    name="plain",
    tier=None,
    aliases=[],
    service="local",
    backend="mock",
    state="not_loaded",
    created=1_600_000_000,
)
EMBEDDER = ModelStatus(
    id="embedding/bge",
    name="bge",
    tier="embedding",
    aliases=[],
    service="local",
    backend="mock",
    state="not_loaded",
    type="embeddings",
    capabilities=["embedding", "sparse", "colbert"],
)
RERANKER = ModelStatus(
    id="reranker/rank",
    name="rank",
    tier="reranker",
    aliases=[],
    service="local",
    backend="mock",
    state="not_loaded",
    type="reranker",
    n_ctx=64,
    capabilities=["rerank", "tokenize"],
)
MODELS = [LIGHT, PLAIN, EMBEDDER]
ENCODERS = [*MODELS, RERANKER]


@dataclass
class Script:
    """What a generation does. Each choice says `pieces`, one token each."""

    pieces: Sequence[str | bytes] = ("Hello", " world", "!")
    by_prompt: bool = False
    """Say the prompt's own words instead."""
    endless: bool = False
    """Say `pieces` over and over until cancelled."""
    batch: int = 1
    """Deltas that have come at each step of the iteration."""
    refuse: LlmvisorError | None = None
    """Raised by `generate`."""
    fail: Exception | None = None
    """Raised by the iteration after `fail_after` deltas."""
    fail_after: int = 0
    delay_seconds: float = 0.0
    """Before the first delta."""
    gate: asyncio.Event | None = None
    """Waited for before the first delta."""
    pause: asyncio.Event | None = None
    """Waited for after the first deltas."""
    finish: FinishReason | None = "stop"
    logprob: float = -0.5
    queue_ms: float = 1.5
    load_ms: float = 0.25
    done: bool = True
    prompt_tokens: int = 5
    cached_tokens: int = 2
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    waits_for: Callable[[], str] = str
    """What it says it waits for."""
    deltas: Sequence[Delta] | None = None
    """Instead of `pieces`: what each choice gets, finish included."""


class FakeStream:
    """See `services.service.Stream`."""

    cache: CacheState = "off"

    def __init__(self, service: FakeService, generation: Generation, script: Script) -> None:
        self.waits_for = script.waits_for
        self.queue_ms = 0.0
        self.load_ms = 0.0
        self.done: Done | None = None
        self.generation = generation
        self._service = service
        self._script = script

    async def __aenter__(self) -> Self:
        self._service.running += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._service.running -= 1
        if self.done is None:
            self._service.cancelled.append(self.generation.request_id)

    async def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        script = self._script
        if script.delay_seconds:
            await asyncio.sleep(script.delay_seconds)
        if script.gate is not None:
            await script.gate.wait()
        self.queue_ms, self.load_ms = script.queue_ms, script.load_ms
        deltas = self._deltas()
        if script.fail is not None:
            deltas = islice(deltas, script.fail_after)
        sent = 0
        while batch := list(islice(deltas, script.batch)):
            sent += sum(len(delta.tokens) for delta in batch)
            self._service.tokens_sent += len(batch)
            yield batch
            if script.pause is not None:
                await script.pause.wait()
            await asyncio.sleep(0)
        if script.fail is not None:
            raise script.fail
        if script.done:
            self.done = Done(
                id=1,
                prompt_tokens=script.prompt_tokens,
                cached_tokens=script.cached_tokens,
                completion_tokens=sent,
                prompt_ms=10.0,
                predicted_ms=20.0,
                drafted_tokens=script.drafted_tokens,
                accepted_tokens=script.accepted_tokens,
            )

    def _deltas(self) -> Iterator[Delta]:
        """Token by token over all choices, then the finish of each."""
        choices = range(self.generation.n)
        if self._script.deltas is not None:
            for delta in self._script.deltas:
                yield from (msgspec.structs.replace(delta, index=index) for index in choices)
            return
        pieces = self._pieces()
        if self._script.endless:
            texts = [piece if isinstance(piece, str) else piece.decode() for piece in pieces]
            deltas = [Delta(id=1, index=index, text=text, tokens=[7]) for text in texts for index in choices]
            for _ in count():
                yield from deltas
        for number, piece in enumerate(pieces[: self.generation.max_tokens]):
            for index in choices:
                yield self._delta(index, number, piece)
        cut = self.generation.max_tokens is not None and self.generation.max_tokens < len(pieces)
        for index in choices:
            finish = "length" if cut else self._script.finish
            yield Delta(id=1, index=index, text="", tokens=[], finish=finish)

    def _delta(self, index: int, token: int, piece: str | bytes) -> Delta:
        raw = piece.encode() if isinstance(piece, str) else piece
        text = raw.decode(errors="replace")
        logprobs: list[TokenLogprob] = []
        if self.generation.logprobs is not None:
            # Later choices are likelier, so that best_of has something to choose.
            logprob = self._script.logprob / (index + 1)
            top = [TopLogprob(token=9, piece=b" other", logprob=float("-inf"))][: self.generation.logprobs]
            logprobs = [TokenLogprob(token=token, piece=raw, logprob=logprob, top=top)]
        return Delta(id=1, index=index, text=text, tokens=[token], logprobs=logprobs)

    def _pieces(self) -> Sequence[str | bytes]:
        prompt = prompt_text(self.generation.prompt)
        said = prompt.split() if self._script.by_prompt else self._script.pieces
        return [prompt, *said] if self.generation.echo else said


def _same_vector(_: int) -> list[float]:
    return [0.6, 0.0, 0.8]


def _occurrences(query: str, document: str) -> float:
    return float(document.count(query))


@dataclass
class FakeService:
    """See `services.service.Service`. `scripts` by model name; the others follow `script`."""

    name: str = "local"
    statuses: list[ModelStatus] = field(default_factory=lambda: list(MODELS))
    script: Script = field(default_factory=Script)
    scripts: dict[str, Script] = field(default_factory=dict[str, Script])
    generations: list[Generation] = field(default_factory=list[Generation])
    """All that were asked for, in order."""
    cancelled: list[str] = field(default_factory=list[str])
    """Request ids of those that were left before their end."""
    running: int = 0
    tokens_sent: int = 0
    encoded: list[EmbeddingRequest | ScoringRequest] = field(default_factory=list[EmbeddingRequest | ScoringRequest])
    """All embeddings and scores that were asked for, in order."""
    dense: Callable[[int], list[float]] = _same_vector
    """The dense vector of input number n."""
    logit: Callable[[str, str], float] = _occurrences
    """The score of a pair."""

    def models(self) -> list[ModelStatus]:
        return self.statuses

    def model(self, name: str) -> ModelStatus:
        return next(status for status in self.statuses if status.name == name)

    def resolve(self, requested: str | None, purpose: str = "name") -> str:
        """Name, id, alias or tier; absent takes the first model, or that of the tier that the purpose is."""
        if requested is None and purpose in {"embedding", "reranker"}:
            requested = purpose
        for status in self.statuses:
            if requested in {None, status.name, status.id, status.tier, *status.aliases}:
                return status.name
        raise ModelNotFound(f"the model '{requested}' does not exist", param="model")

    def identity(self, model: str) -> ModelIdentity:
        return ModelIdentity(model, Sampling(), 100)

    def generate(self, model: str, generation: Generation) -> FakeStream:
        script = self.scripts.get(model, self.script)
        self.generations.append(generation)
        if script.refuse is not None:
            raise script.refuse
        return FakeStream(self, generation, script)

    async def embed(self, model: str, request: EmbeddingRequest) -> Embedded:
        """A token for each character or id; sparse weights 0.5 for token 7; two colbert vectors."""
        await self._begin_encoding(model, request)
        items = [
            Embedding(
                tokens=len(given),
                dense=array("f", self.dense(number)).tobytes() if "dense" in request.kinds else b"",
                sparse={7: 0.5} if "sparse" in request.kinds else {},
                colbert=array("f", [1.0, 0.0, 0.0, 1.0]).tobytes() if "colbert" in request.kinds else b"",
                colbert_vectors=2 if "colbert" in request.kinds else 0,
            )
            for number, given in enumerate(request.inputs)
        ]
        return Embedded(items=items, queue_ms=1.5, load_ms=0.25)

    async def score(self, model: str, request: ScoringRequest) -> Scored:
        """The number of times that the query stands in the document, as a logit."""
        await self._begin_encoding(model, request)
        scores = [self.logit(query, document) for query, document in request.pairs]
        return Scored(scores=scores, tokens=10 * len(scores), queue_ms=1.5, load_ms=0.25)

    async def _begin_encoding(self, model: str, request: EmbeddingRequest | ScoringRequest) -> None:
        script = self.scripts.get(model, self.script)
        self.encoded.append(request)
        if script.refuse is not None:
            raise script.refuse
        if script.gate is not None:
            try:
                await script.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.request_id)
                raise

    async def tokenize(self, model: str, prompt: Prompt, *, add_special: bool, parse_special: bool) -> Tokens:
        """A token for each byte; a leading 1 with `add_special`."""
        raw = prompt_text(prompt).encode()
        start = [1] if add_special else []
        pieces = [b"<s>"] if add_special else []
        return Tokens(id=1, tokens=start + list(raw), pieces=pieces + [bytes([byte]) for byte in raw])

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        return bytes(token % 256 for token in tokens).decode(errors="replace")

    async def apply_template(self, model: str, prompt: ChatPrompt) -> str:
        return prompt_text(prompt)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text."""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    if isinstance(prompt, TokenPrompt):
        return " ".join(str(token) for token in prompt.tokens)
    if isinstance(prompt, InfillPrompt):
        return f"{prompt.prefix}<fill>{prompt.suffix}"
    turns = "".join(f"<{message.role}>{message.content}" for message in prompt.messages)
    return turns + ("<assistant>" if prompt.add_generation_prompt else "")
