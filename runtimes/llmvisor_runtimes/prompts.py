"""The prompt thread: tokenizing and templates, apart from the engine: a long prompt holds up nobody's decoding."""

from __future__ import annotations

import queue
import sys
import traceback
from collections.abc import Callable, Sequence

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import Backend, Constrains, Encodes, RequestError
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import (
    ApplyTemplate,
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


class PromptThread:
    """Answers what needs the tokenizer alone, and makes requests ready for the engine, in the order they come."""

    def __init__(
        self, backend: Backend, pipes: Pipes, waiting: WaitingRequests, ready: Callable[[Prompted | Prepared], None]
    ) -> None:
        self.loaded = False
        """Set by the engine thread once the model is there."""
        self._backend = backend
        self._pipes = pipes
        self._waiting = waiting
        self._ready = ready
        self._queue: queue.SimpleQueue[PromptCommand] = queue.SimpleQueue()
        self.put = self._queue.put

    def run(self) -> None:
        """Work for ever."""
        while True:
            command = self._queue.get()
            try:
                if not self.loaded:
                    raise RequestError("internal_error", "no model is loaded")  # noqa: TRY301 - answered right below
                self._handle(command)
            except RequestError as error:
                self._fail(command, Failed(command.id, error.kind, error.message, error.param))
            except Exception as error:  # noqa: BLE001 - one request's failure, with the traceback in the log
                self._fail(command, internal_error(command, error))

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
            self._answer(Tokens(command.id, tokens, self._pieces(tokens)))
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


def internal_error(command: PromptCommand, error: Exception) -> Failed:
    """The answer where a backend fails in an unforeseen way; the traceback goes to the log."""
    what = command.request_id if isinstance(command, EngineRequest) else type(command).__name__
    sys.stderr.write(f"{what} failed:\n{''.join(traceback.format_exception(error))}")
    return Failed(command.id, "internal_error", f"{type(error).__name__}: {error}")


def check_request(request: Generate) -> None:
    """Refuse what is over the worker's own bounds, whatever the daemon let through. Raises `RequestError`."""
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
