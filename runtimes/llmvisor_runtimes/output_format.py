"""How a model writes thoughts and calls of tools, and what a request's text has to be: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from llmvisor_runtimes import choice
from llmvisor_runtimes.output import OutputParser
from llmvisor_runtimes.protocol import ChatPrompt, Generate, Grammar
from llmvisor_runtimes.structured import Constraint
from llmvisor_runtimes.structured.compiler import GrammarCompiler
from llmvisor_runtimes.toolcalls import call_id, make_parser, markers, tool_grammar

_OPENING_TOKENS = 32
"""So much of a prompt's end tells how the answer begins."""


class Vocabulary(choice.Vocabulary, Protocol):
    """What is asked of a model's vocabulary."""

    size: int

    def tokenize_bytes(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens written out."""
        ...


class OutputFormat:
    """The format of one model's output."""

    def __init__(self, vocabulary: Vocabulary, family: str) -> None:
        """`family` as `toolcalls.family_of` gives it."""
        self.family = family
        self._vocabulary = vocabulary
        self.marks = _mark_tokens(vocabulary, family)
        """Special tokens that are written out for a parser or a grammar, and otherwise never seen."""

    def parser(self, request: Generate, prompt: list[int], new_id: Callable[[], str] = call_id) -> OutputParser | None:
        """A parser for one choice of a conversation; None where its text is taken as it is.

        `new_id` gives the ids of tool calls.
        """
        conversation = request.prompt
        if not isinstance(conversation, ChatPrompt):
            return None
        if request.grammar is not None and not requires_call(conversation):
            return None
        opening = [token for token in prompt[-_OPENING_TOKENS:] if token >= 0]  # others stand for images
        return make_parser(conversation, self.family, self._vocabulary.detokenize(opening), new_id)


class Grammars:
    """Finds a request's grammar and compiles it. For the prompt thread.

    The compiler is made with the first one: it reads the whole vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, format: OutputFormat, render: Callable[[ChatPrompt], str]) -> None:
        self._vocabulary = vocabulary
        self._format = format
        self._render = render
        self._compiler: GrammarCompiler | None = None

    def constraint(self, request: Generate) -> Constraint | None:
        """As `backend.Constrains`."""
        grammar = self._grammar(request)
        if grammar is None:
            return None
        if self._compiler is None:
            self._compiler = make_compiler(self._vocabulary, self._format.marks)
        return self._compiler.compile(grammar)

    def _grammar(self, request: Generate) -> Grammar | None:
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt) and requires_call(prompt):
            return tool_grammar(prompt, self._format.family, self._render(prompt))
        return request.grammar


def requires_call(prompt: ChatPrompt) -> bool:
    """Whether an answer has to be a call of a tool. A grammar for other answers then has nothing to say."""
    return bool(prompt.tools) and prompt.tool_choice == "required"


def make_compiler(vocabulary: Vocabulary, marks: Collection[int] = ()) -> GrammarCompiler:
    """A compiler for a model's tokens. What a token writes into a text is what a grammar takes it for.

    `marks` are special tokens that are written out.
    """
    tokens = [vocabulary.piece(token) for token in range(vocabulary.size)]
    silent = [token for token, piece in enumerate(tokens) if not piece]
    for token in silent:
        tokens[token] = vocabulary.written_piece(token)
    return GrammarCompiler(
        tokens,
        end_tokens=vocabulary.end_tokens,
        special_tokens=set(silent) - set(marks),
        tokenize=lambda text: vocabulary.tokenize_bytes(text, add_special=False, parse_special=False),
    )


def _mark_tokens(vocabulary: Vocabulary, family: str) -> frozenset[int]:
    found: set[int] = set()
    for mark in markers(family):
        tokens = vocabulary.tokenize_bytes(mark.encode(), add_special=False, parse_special=True)
        if len(tokens) == 1 and vocabulary.written_piece(tokens[0]) == mark.encode():
            found.add(tokens[0])
    return frozenset(found.difference(vocabulary.end_tokens))
