"""The prompt thread: tokenizing and templates, apart from the engine: a long prompt holds up nobody's decoding."""

from __future__ import annotations

import itertools
import queue
import sys
import traceback
from collections.abc import Callable, Sequence

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Backend, Constrains, Encodes, JoinsPieces, RequestError
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import (
    ApplyTemplate,
    ChatPrompt,
    Detokenize,
    Embed,
    Failed,
    Generate,
    Prompt,
    Report,
    Score,
    Text,
    TextPrompt,
    Tokenize,
    TokenPrompt,
    Tokens,
)
from llmvisor_runtimes.resumption import check_resumed
from llmvisor_runtimes.structured import Constraint
from llmvisor_runtimes.waiting import WaitingRequests

EngineRequest = Generate | Embed | Score
PromptCommand = EngineRequest | Tokenize | Detokenize | ApplyTemplate


class Prompted:
    """A generation with its prompt as tokens, ready for the engine."""

    __slots__ = ("constraint", "request", "tokens")

    def __init__(self, request: Generate, tokens: list[int], constraint: Constraint | None) -> None:
        self.request = request
        self.tokens = tokens
        self.constraint = constraint


class Prepared:
    """Texts to be encoded, tokenized and ready for the engine."""

    __slots__ = ("prepared", "request")

    def __init__(self, request: Embed | Score, prepared: object) -> None:
        self.request = request
        self.prepared = prepared


class _Bulk:
    """A request of the bulk lane that is made ready piece by piece."""

    __slots__ = ("pieces", "request", "sizes", "texts_done")

    def __init__(self, request: Embed | Score) -> None:
        self.request = request
        self.pieces: list[object] = []
        self.texts_done = 0
        if isinstance(request, Score):
            self.sizes = [len(query) + len(document) for query, document in request.pairs]
        else:
            self.sizes = [len(text) for text in request.inputs]

    @property
    def done(self) -> bool:
        return self.texts_done >= len(self.sizes)

    def next_piece(self) -> Embed | Score:
        """A request for the next few texts: at least one, then what is within the bounds."""
        start = self.texts_done
        sizes = itertools.accumulate(self.sizes[start : start + limits.prepared_piece_texts_max])
        stop = self.texts_done = start + max(1, sum(size <= limits.prepared_piece_chars_max for size in sizes))
        if isinstance(self.request, Score):
            return msgspec.structs.replace(self.request, pairs=self.request.pairs[start:stop])
        return msgspec.structs.replace(self.request, inputs=self.request.inputs[start:stop])


_TEXT_LANE, _MEDIA_LANE, _BULK_LANE = range(3)


class PromptThread:
    """Answers what needs the tokenizer alone, and makes requests ready for the engine, in the order they come.

    Those with images, which take a while to decode, let those without pass. Those of the bulk lane let all others
    pass, also between the pieces that they are cut into.
    """

    def __init__(
        self, backend: Backend, pipes: Pipes, waiting: WaitingRequests, ready: Callable[[Prompted | Prepared], None]
    ) -> None:
        self.loaded = False
        """Set by the engine thread once the model is there."""
        self._backend = backend
        self._pipes = pipes
        self._waiting = waiting
        self._ready = ready
        # By lane, then by number, which nobody shares.
        self._queue: queue.PriorityQueue[tuple[int, int, PromptCommand | _Bulk]] = queue.PriorityQueue()
        self._numbers = itertools.count()

    def put(self, command: PromptCommand) -> None:
        """Leave a command to this thread. For one thread."""
        self._queue.put((_lane(command), next(self._numbers), command))

    def run(self) -> None:
        """Work for ever."""
        while True:
            lane, number, work = self._queue.get()
            command = work.request if isinstance(work, _Bulk) else work
            try:
                if not self.loaded:
                    raise RequestError("internal_error", "no model is loaded")  # noqa: TRY301 - answered right below
                if lane == _BULK_LANE and isinstance(self._backend, JoinsPieces) and isinstance(command, Embed | Score):
                    bulk = work if isinstance(work, _Bulk) else _Bulk(command)
                    if self._advance(bulk, self._backend):
                        self._queue.put((lane, number, bulk))  # still the first of its lane
                else:
                    self._handle(command)
            except RequestError as error:
                self._fail(command, Failed(command.id, error.kind, error.message, error.param))
            except Exception as error:  # noqa: BLE001 - one request's failure, with the traceback in the log
                self._fail(command, internal_error(command, error))

    def _advance(self, bulk: _Bulk, backend: JoinsPieces) -> bool:
        """Make one piece ready; True where there is more of it to do."""
        request = bulk.request
        if request.id not in self._waiting:
            return False
        piece = bulk.next_piece()
        try:
            bulk.pieces.append(self._prepare(piece))
        except RequestError:
            self._prepare(request)  # so that the error counts texts from the first of all
            raise
        if bulk.done:
            self._ready(Prepared(request, backend.join(bulk.pieces)))
        return not bulk.done

    def _handle(self, command: PromptCommand) -> None:
        if isinstance(command, Generate):
            if command.id in self._waiting:
                tokens = self._tokenize(command.prompt, add_special=True, parse_special=True)
                self._ready(Prompted(command, tokens, self._constraint(command)))
        elif isinstance(command, Embed | Score):
            if command.id in self._waiting:
                self._ready(Prepared(command, self._prepare(command)))
        elif isinstance(command, Tokenize):
            tokens = self._tokenize(
                command.prompt, add_special=command.add_special, parse_special=command.parse_special
            )
            # What stands for an image is the backend's own affair.
            self._answer(Tokens(command.id, [max(token, -1) for token in tokens], self._pieces(tokens)))
        elif isinstance(command, Detokenize):
            self._answer(Text(command.id, self._backend.detokenize(command.tokens)[0]))
        else:
            self._answer(Text(command.id, self._backend.apply_template(command.prompt)))

    def _tokenize(self, prompt: Prompt, *, add_special: bool, parse_special: bool) -> list[int]:
        if isinstance(prompt, TokenPrompt):
            return prompt.tokens
        if isinstance(prompt, TextPrompt) and len(prompt.text.encode()) > limits.tokenize_text_bytes_max:
            raise RequestError("invalid_value", f"a text is over {limits.tokenize_text_bytes_max} bytes", "prompt")
        return self._backend.tokenize(prompt, add_special=add_special, parse_special=parse_special)

    def _constraint(self, request: Generate) -> Constraint | None:
        if isinstance(self._backend, Constrains):
            return self._backend.constraint(request)
        if request.grammar is not None:
            raise RequestError("unsupported_operation", "this backend cannot hold a text to a grammar", "grammar")
        return None

    def _prepare(self, request: Embed | Score) -> object:
        if not isinstance(self._backend, Encodes):
            what = "embeddings" if isinstance(request, Embed) else "scores"
            raise RequestError("unsupported_operation", f"this model gives no {what}", "model")
        return self._backend.prepare(request)

    def _pieces(self, tokens: Sequence[int]) -> list[bytes]:
        return self._backend.detokenize(tokens)[1]

    def _answer(self, report: Report) -> None:
        try:
            self._pipes.send([report])
        except ValueError as error:
            raise RequestError("invalid_value", f"the answer is too long: {error}") from error

    def _fail(self, command: PromptCommand, failed: Failed) -> None:
        # A request that was cancelled meanwhile has its answer already.
        if not isinstance(command, EngineRequest) or self._waiting.remove(command.id):
            self._pipes.send([failed])


def _lane(command: PromptCommand) -> int:
    if isinstance(command, Embed | Score):
        return _BULK_LANE if command.lane == "bulk" else _TEXT_LANE
    conversation = command.prompt if isinstance(command, Generate | Tokenize) else None
    has_media = isinstance(conversation, ChatPrompt) and any(message.media for message in conversation.messages)
    return _MEDIA_LANE if has_media else _TEXT_LANE


def internal_error(command: PromptCommand, error: Exception) -> Failed:
    """The answer where a backend fails in an unforeseen way; the traceback goes to the log."""
    what = command.request_id if isinstance(command, EngineRequest) else type(command).__name__
    sys.stderr.write(f"{what} failed:\n{''.join(traceback.format_exception(error))}")
    return Failed(command.id, "internal_error", f"{type(error).__name__}: {error}")


def check_request(request: Generate, *, resumes: bool = True) -> None:
    """Refuse what is over the worker's own bounds, whatever the daemon let through. Raises `RequestError`.

    `resumes`: its backend goes on with what another worker began.
    """
    bounds = (
        ("n", request.n, 1, limits.choices_max),
        ("stop", len(request.stop), 0, limits.stop_strings_max),
        ("logprobs", request.logprobs or 0, 0, limits.top_logprobs_max),
    )
    for param, value, least, most in bounds:
        if not least <= value <= most:
            raise RequestError("invalid_value", f"{param} is {value}, outside {least} to {most}", param)
    if request.max_tokens is not None and request.max_tokens < 0:
        raise RequestError("invalid_value", f"max_tokens is {request.max_tokens}, below 0", "max_tokens")
    check_resumed(request, resumes=resumes)
