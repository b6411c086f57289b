"""One choice of a request: its tokens become text, tool calls and log-probabilities, and it learns when to end.

What every engine that writes text has in common stands here; how tokens are computed and chosen is the engine's own.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Collection
from typing import Protocol

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.output import OutputParser, Parts
from llmvisor_runtimes.protocol import Delta, Done, FinishReason, Generate, Resumed, TokenLogprob
from llmvisor_runtimes.resumption import not_resumable, sent_tokens
from llmvisor_runtimes.text import TextAssembler


class Vocabulary(Protocol):
    """What a choice has to know of a model's vocabulary."""

    bos: int
    adds_bos: bool
    """Prompts get `bos` in front, which an echo does not show."""

    @property
    def end_tokens(self) -> Collection[int]:
        """Tokens that end a generation."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a generated text; none for control tokens."""
        ...

    def written_piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens written out."""
        ...

    def check(self, tokens: list[int], param: str) -> None:
        """Raises `RequestError` where a token is none of this vocabulary."""
        ...


class Usage:
    """What a request has used so far. Times are seconds of one clock."""

    __slots__ = (
        "accepted_tokens", "cached_tokens", "completion_tokens", "drafted_tokens", "first_token_at", "started_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cached_tokens: int | None = None
        """None until its first choice has begun."""
        self.completion_tokens = 0
        self.drafted_tokens = 0
        """Tokens that were guessed ahead."""
        self.accepted_tokens = 0
        """Of these, the ones that were right."""
        self.started_at: float | None = None
        self.first_token_at: float | None = None

    def done(self, id: int, prompt_tokens: int, now: float) -> Done:
        """The end of the request."""
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Done(
            id=id,
            prompt_tokens=prompt_tokens,
            cached_tokens=self.cached_tokens or 0,
            completion_tokens=self.completion_tokens,
            prompt_ms=(first - started) * 1e3,
            predicted_ms=(now - first) * 1e3,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
        )


def check_prompt(prompt: list[int], *, n_ctx: int, vocabulary: Vocabulary, length: int | None = None) -> None:
    """Raises `RequestError` for a prompt that can never be served; `length` counts its images too."""
    vocabulary.check(prompt, "prompt")
    length = len(prompt) if length is None else length
    if not length:
        raise RequestError("invalid_value", "the prompt is empty: there is no token to continue", "prompt")
    if length >= n_ctx:
        raise RequestError(
            "context_length_exceeded",
            f"the prompt has {length} tokens, but the context holds {n_ctx} including at least one generated token",
            "prompt",
        )


def failure_of(request_id: str, error: Exception) -> RequestError:
    """What a request fails with for this error; of anything but a `RequestError` the traceback goes to the log."""
    if isinstance(error, RequestError):
        return error
    sys.stderr.write(f"{request_id} failed:\n{''.join(traceback.format_exception(error))}")
    sys.stderr.flush()
    return RequestError("internal_error", f"{type(error).__name__}: {error}")


class ChoiceText:
    """The tokens of one choice, and the deltas that they make."""

    __slots__ = (
        "_assembler",
        "_echoed",
        "_generate",
        "_held_logprobs",
        "_marks",
        "_parser",
        "_prompt_tokens",
        "_sent_bytes",
        "_tokens_left",
        "_usage",
        "_vocabulary",
        "_written_bytes",
        "echo_due",
        "finish",
        "index",
        "tokens",
    )

    def __init__(
        self,
        generate: Generate,
        prompt: list[int],
        index: int,
        *,
        n_ctx: int,
        vocabulary: Vocabulary,
        usage: Usage,
        parser: OutputParser | None = None,
        marks: frozenset[int] = frozenset(),
    ) -> None:
        """`marks` are special tokens that are written out; `parser` takes apart what may be more than an answer."""
        self.index = index
        self.tokens = list(prompt)
        """The prompt's, and those written."""
        self.finish: FinishReason | None = None
        self.echo_due = generate.echo
        self._echoed = 0
        """So many tokens of the prompt have been sent already."""
        self._generate = generate
        self._usage = usage
        self._vocabulary = vocabulary
        self._parser = parser
        self._marks = marks
        self._prompt_tokens = len(prompt)
        self._tokens_left = n_ctx - len(prompt)
        if generate.max_tokens is not None:
            self._tokens_left = min(self._tokens_left, generate.max_tokens)
        self._assembler = TextAssembler(generate.stop)
        self._held_logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self._written_bytes = 0
        self._sent_bytes = 0

    @property
    def wants_token(self) -> bool:
        """A token has to be chosen once all are computed; not so where only the prompt is scored."""
        return self._tokens_left > 0

    @property
    def tokens_left(self) -> int:
        """How many tokens may still be written."""
        return self._tokens_left

    @property
    def logprobs_held(self) -> int:
        """So many of the last tokens' log-probabilities wait for their text to be certain."""
        return len(self._held_logprobs)

    def replay(self, resumed: Resumed) -> list[int]:
        """Go on behind what another worker has sent, nothing of which comes again; gives the tokens that it wrote.

        Log-probabilities that are still held are unknown until `set_logprob` tells. Raises `RequestError`.
        """
        self._echoed, written = sent_tokens(self._generate, resumed, self.tokens)
        self._vocabulary.check(written, "resumed")
        self.echo_due = self.echo_due and self._echoed < self._prompt_tokens
        self.finish = resumed.finish
        if self.finish is not None:
            self._usage.completion_tokens += len(written)
            return written
        left = self._tokens_left - len(written)
        self._tokens_left = len(written) + 1  # so many had their place there, whatever there is room for here
        unknown = None if self._generate.logprobs is None else TokenLogprob(-1, b"", None, [])
        for place, token in enumerate(written):
            self.take(token, unknown)
            if self.finish is not None:
                raise not_resumable(f"choice {self.index} ended with token {place}, and has {len(written)}")
        self._tokens_left = left
        return written

    def set_logprob(self, place: int, logprob: TokenLogprob) -> None:
        """The log-probability of the token at this place, where it is one of those held."""
        held = place - (len(self.tokens) - len(self._held_logprobs))
        if held >= 0:
            self._held_logprobs[held] = (self._held_logprobs[held][0], logprob)

    def echo(self, prompt_logprobs: list[TokenLogprob]) -> Delta:
        """The prompt itself, once it has been computed."""
        self.echo_due = False
        vocabulary = self._vocabulary
        prompt = self.tokens[: self._prompt_tokens]
        shown = prompt[1:] if vocabulary.adds_bos and prompt[:1] == [vocabulary.bos] else prompt
        text = b"".join(map(vocabulary.written_piece, shown)).decode("utf-8", "replace")
        if not self.wants_token:
            self.finish = "length"
        # Where it was cut between two frames, the text was in none of those sent: `split.split_step`.
        sent = self._echoed
        return Delta(
            self._generate.id, self.index, text, prompt[sent:], finish=self.finish, logprobs=prompt_logprobs[sent:]
        )

    def nothing_wanted(self) -> Delta:
        """The last delta of a choice that may have no (further) token."""
        self.finish = "length"
        self._held_logprobs.clear()
        return self._delta(self._assembler.flush(), [], [])

    def cancelled(self) -> Delta:
        """The last delta of a choice that was cancelled."""
        self.finish = "cancelled"
        return Delta(self._generate.id, self.index, "", [], finish="cancelled")

    def take(self, token: int, logprob: TokenLogprob | None, *, complete: bool = False) -> Delta:
        """The delta that a chosen token brings; sets `finish` where it is the last.

        `complete`: a grammar lets nothing follow it but the end.
        """
        self.tokens.append(token)
        self._usage.completion_tokens += 1
        self._tokens_left -= 1
        assembler = self._assembler
        if token in self._vocabulary.end_tokens:
            self.finish = "stop"
            text = assembler.flush()
        else:
            vocabulary = self._vocabulary
            piece = vocabulary.written_piece(token) if token in self._marks else vocabulary.piece(token)
            text = assembler.push(piece)
            if logprob is not None:
                self._held_logprobs.append((self._written_bytes, logprob))
                self._written_bytes += len(piece)
            if not assembler.stopped and (complete or self._tokens_left <= 0):
                self.finish = "stop" if complete else "length"
                text += assembler.flush()
        if assembler.stopped:
            self.finish = "stop"
        logprobs = self._released_logprobs(text) if self._held_logprobs else []
        return self._delta(text, [token], logprobs)

    def _delta(self, text: str, tokens: list[int], logprobs: list[TokenLogprob]) -> Delta:
        parser = self._parser
        if parser is None:
            return Delta(self._generate.id, self.index, text, tokens, self.finish, logprobs)
        parts = parser.feed(text) if text else Parts()
        if self.finish is not None:
            parts = _joined(parts, parser.finish())
            if parser.called and self.finish == "stop":
                self.finish = "tool_calls"
        return Delta(
            self._generate.id,
            self.index,
            parts.text,
            tokens,
            self.finish,
            logprobs,
            parts.reasoning,
            list(parts.tool_calls),
        )

    def _released_logprobs(self, text: str) -> list[TokenLogprob]:
        """Log-probabilities go out with the text of their tokens, and not at all where a stop string cut it off."""
        self._sent_bytes += len(text.encode())
        everything = self.finish is not None and not self._assembler.stopped
        released: list[TokenLogprob] = []
        while self._held_logprobs and (everything or self._held_logprobs[0][0] < self._sent_bytes):
            released.append(self._held_logprobs.popleft()[1])
        return released


def _joined(first: Parts, second: Parts) -> Parts:
    return Parts(first.text + second.text, first.reasoning + second.reasoning, [*first.tool_calls, *second.tool_calls])
