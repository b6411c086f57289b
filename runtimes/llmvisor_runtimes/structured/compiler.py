"""Grammars compiled to token masks with llguidance, for any backend that has a list of tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured import Constraint, Matcher
from llmvisor_runtimes.structured.sources import llguidance_grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

PARAM = "grammar"
"""Which parameter of a request the errors name."""

Tokenize = Callable[[bytes], Sequence[int]]


class GrammarCompiler:
    """Compiles grammars for one vocabulary, and keeps the last ones. For one thread; what it gives is for any."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        end_tokens: Collection[int],
        special_tokens: Collection[int] = (),
        tokenize: Tokenize | None = None,
    ) -> None:
        """`tokens[i]` are the bytes that token i writes, a special token's name in place of them.

        Special tokens never stand for text; a Lark grammar may name them (`<|name|>`). `end_tokens` end a text.
        `tokenize` gives the tokens of UTF-8 without any special ones: where the grammar leaves no choice, the text gets
        the tokens that the model knows it by. Without it, or where its tokens are of another text, the longest fit.
        """
        self._end_tokens = frozenset(end_tokens)
        self._tokenizer = _tokenizer(tokens, self._end_tokens, frozenset(special_tokens), tokenize)
        self._limits = _parser_limits()
        self._cached: OrderedDict[Grammar, Constraint] = OrderedDict()

    def compile(self, grammar: Grammar) -> Constraint:
        """The constraint of a grammar. Raises `RequestError` (invalid_value) with the reason where there is none.

        Whatever it is given, it takes seconds at most: everything it does is bounded in `limits`.
        """
        constraint = self._cached.pop(grammar, None) or self._compiled(grammar)
        self._cached[grammar] = constraint
        if len(self._cached) > limits.grammars_cached_max:
            self._cached.popitem(last=False)
        return constraint

    def _compiled(self, grammar: Grammar) -> Constraint:
        from llguidance import LLMatcher  # noqa: PLC0415 - the mock and the daemon's tests have no llguidance

        try:
            source = llguidance_grammar(grammar)
        except ValueError as error:
            raise _refused(grammar, str(error)) from error
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if not matcher.is_error():
            # The first mask shows what has no beginning at all.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(grammar, _reason(matcher))
        return _LlguidanceConstraint(matcher, self._end_tokens)


class _LlguidanceConstraint:
    def __init__(self, matcher: LLMatcher, end_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._end_tokens = end_tokens

    def matcher(self) -> Matcher:
        return _LlguidanceMatcher(self._matcher.deep_copy(), self._end_tokens)


class _LlguidanceMatcher:
    def __init__(self, matcher: LLMatcher, end_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._end_tokens = end_tokens
        self._ended = False

    def mask(self) -> bytearray:
        """As `Matcher`. Raises `RequestError` where the grammar turns out to need too much, or to lead nowhere."""
        mask = self._matcher.compute_bitmask()
        self._check()
        return bytearray(mask)

    def consume(self, token: int) -> bool:
        """As `Matcher`. Raises `RequestError` as `mask` does."""
        if token in self._end_tokens:
            self._ended = self._ended or self._matcher.is_accepting()
            return self._ended
        if self._ended or self._matcher.try_consume_tokens([token]) == 0:
            self._check()
            return False
        return True

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher)
            raise RequestError("invalid_value", f"the grammar cannot be followed further: {reason}", PARAM)

    @property
    def finished(self) -> bool:
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer, by llguidance's names."""

    def __init__(
        self, tokens: Sequence[bytes], end_tokens: frozenset[int], special: frozenset[int], tokenize: Tokenize | None
    ) -> None:
        self.tokens = tokens
        self.eos_token_id = min(end_tokens)
        self.bos_token_id = None
        self.special_token_ids = sorted(special | end_tokens)
        self._tokenize = tokenize
        self._ids = {piece: id for id, piece in enumerate(tokens) if piece and id not in special | end_tokens}
        self._piece_bytes_max = max(map(len, self._ids), default=0)

    def __call__(self, data: bytes) -> list[int]:
        tokens = list(self._tokenize(data)) if self._tokenize else []
        written = b"".join(self.tokens[token] for token in tokens)
        return tokens if tokens and written == data else self._longest(data)

    def _longest(self, data: bytes) -> list[int]:
        tokens: list[int] = []
        start = 0
        while start < len(data):
            stops = range(min(len(data), start + self._piece_bytes_max), start, -1)
            stop = next((stop for stop in stops if data[start:stop] in self._ids), None)
            if stop is None:
                break
            tokens.append(self._ids[data[start:stop]])
            start = stop
        return tokens


def _tokenizer(
    tokens: Sequence[bytes], end_tokens: frozenset[int], special: frozenset[int], tokenize: Tokenize | None
) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415 - as above

    if not end_tokens:
        raise RequestError("unsupported_operation", "the model has no token that ends a text", PARAM)
    vocabulary = _Vocabulary(tokens, end_tokens, special, tokenize)
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=sorted(end_tokens))


def _parser_limits() -> LLParserLimits:
    from llguidance import LLParserLimits  # noqa: PLC0415 - as above

    return LLParserLimits(
        max_items_in_row=limits.grammar_row_items_max,
        initial_lexer_fuel=limits.grammar_initial_fuel_max,
        step_lexer_fuel=limits.grammar_step_fuel_max,
        step_max_items=limits.grammar_step_items_max,
        max_lexer_states=limits.grammar_lexer_states_max,
        max_grammar_size=limits.grammar_symbols_max,
        verbose_errors=False,
    )


def _reason(matcher: LLMatcher) -> str:
    text = matcher.get_error().replace("<non-verbose/>", "").strip()
    # Some states name only what stopped them: no token goes on from there.
    return "nothing can come next" if text in {"", "NoExtension", "NoExtensionBias"} else text


def _refused(grammar: Grammar, reason: str) -> RequestError:
    return RequestError("invalid_value", f"the {_NAMES[grammar.kind]} cannot be used: {reason}", PARAM)


_NAMES = {
    "json_object": "JSON object",
    "json_schema": "JSON Schema",
    "regex": "regular expression",
    "choice": "choice",
    "lark": "Lark grammar",
    "gbnf": "GBNF grammar",
    "tool_calls": "grammar of tool calls",
}
