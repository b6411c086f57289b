"""The matcher allows the tokens that its grammar does and no others; the compiler compiles each grammar once.

A mask has a bit for each token; a refused token changes nothing; a text ends with any end token, or by itself; special
tokens never stand for text. The compiler remembers some grammars, and importing it loads no engine.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.grammars import ALSO_END, COMPILER, END, ENDS, MARK, START, TOKENS

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured.compiler import GrammarCompiler

# -------------------------------------------------------------------------------------------------------- the matcher


def test_mask_has_a_bit_for_each_token_in_whole_words() -> None:
    """264 tokens are 9 words of 32 bits."""
    mask = COMPILER.compile(Grammar("regex", "[ac]")).matcher().mask()
    assert isinstance(mask, bytearray)
    assert len(mask) == 36
    assert int.from_bytes(mask, "little") == 1 << ord("a") | 1 << ord("c")


def test_refused_token_leaves_the_matcher_as_it_was() -> None:
    """1. A token is refused. 2. One that is allowed follows. Result: it is taken as if nothing had been."""
    matcher = COMPILER.compile(Grammar("regex", "abc")).matcher()
    assert matcher.consume(ord("a"))
    before = bytes(matcher.mask())
    for token in (ord("a"), END, START, MARK, TOKENS.index(b"true"), TOKENS.index(b"")):
        assert not matcher.consume(token)
    assert matcher.mask() == before
    assert matcher.consume(ord("b"))
    assert matcher.consume(ord("c"))


def test_text_that_may_end_ends_with_any_end_token() -> None:
    """After `a` of `a+` each end token may come, and after that nothing."""
    constraint = COMPILER.compile(Grammar("regex", "a+"))
    for end in ENDS:
        matcher = constraint.matcher()
        assert not matcher.consume(end)
        assert matcher.consume(ord("a"))
        assert not matcher.finished
        mask = int.from_bytes(matcher.mask(), "little")
        assert mask == 1 << ord("a") | 1 << END | 1 << ALSO_END
        assert matcher.consume(end)
        assert matcher.finished
        assert not matcher.consume(ord("a"))


def test_text_that_can_only_end_is_finished_without_an_end_token() -> None:
    matcher = COMPILER.compile(Grammar("regex", "ab")).matcher()
    assert matcher.consume(ord("a"))
    assert not matcher.finished
    assert matcher.consume(ord("b"))
    assert matcher.finished
    assert int.from_bytes(matcher.mask(), "little") == 1 << END | 1 << ALSO_END


def test_tokens_of_several_bytes_are_allowed_where_all_of_them_fit() -> None:
    matcher = COMPILER.compile(
        Grammar("json_schema", '{"type":"object","properties":{"a":{"type":"boolean"}}}')
    ).matcher()
    assert matcher.consume(TOKENS.index(b'{"a'))
    assert matcher.consume(TOKENS.index(b'":'))
    assert not matcher.consume(TOKENS.index(b'{"a'))
    assert matcher.consume(TOKENS.index(b"true"))


def test_special_token_never_stands_for_text() -> None:
    """Its name as text is written letter by letter; a Lark grammar may name the token itself."""
    spelled = COMPILER.compile(Grammar("choice", '["<|call|>"]')).matcher()
    assert not spelled.consume(MARK)
    assert all(spelled.consume(byte) for byte in b"<|call|>")
    named = COMPILER.compile(Grammar("lark", 'start: <|call|> "x"')).matcher()
    assert not named.consume(ord("<"))
    assert named.consume(MARK)
    assert named.consume(ord("x"))


def test_text_without_a_choice_gets_the_tokens_that_the_model_knows_it_by() -> None:
    """Where only one text can come next, the mask leaves its own tokens: not its letters one by one."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"", b"na", b"name", b"nam"]
    compiler = GrammarCompiler(tokens, end_tokens=[256], tokenize=lambda text: [258] if text == b"name" else list(text))
    matcher = compiler.compile(Grammar("choice", '["name"]')).matcher()
    assert int.from_bytes(matcher.mask(), "little") == 1 << 258


def test_matchers_of_one_constraint_know_nothing_of_each_other() -> None:
    constraint = COMPILER.compile(Grammar("regex", "ab|cd"))
    first, second = constraint.matcher(), constraint.matcher()
    assert first.consume(ord("a"))
    assert second.consume(ord("c"))
    assert first.consume(ord("b"))
    assert second.consume(ord("d"))


def test_grammar_that_leads_nowhere_is_told_of_when_it_gets_there() -> None:
    """1. After `a` nothing can be written. Result: an error that says so, not a text that looks complete."""
    matcher = COMPILER.compile(Grammar("lark", 'start: "a" b\nb: b "x"')).matcher()
    assert matcher.consume(ord("a"))
    with pytest.raises(RequestError, match="nothing can come next"):
        matcher.mask()
    assert not matcher.finished


# ------------------------------------------------------------------------------------------------------- the compiler


def test_same_grammar_is_compiled_once_while_it_is_remembered() -> None:
    """1. A grammar comes again. 2. As many others as are kept come. 3. It comes again. Result: compiled twice."""
    compiler = GrammarCompiler(TOKENS, end_tokens=ENDS)
    grammar = Grammar("regex", "a+")
    first = compiler.compile(grammar)
    assert compiler.compile(Grammar("regex", "a+")) is first
    for number in range(limits.grammars_cached_max - 1):
        compiler.compile(Grammar("regex", f"b{{{number}}}c"))
    assert compiler.compile(grammar) is first
    for number in range(limits.grammars_cached_max):
        compiler.compile(Grammar("regex", f"d{{{number}}}e"))
    assert compiler.compile(grammar) is not first


def test_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(RequestError, match="no token that ends"):
        GrammarCompiler(TOKENS, end_tokens=[])


def test_importing_structured_output_does_not_import_llguidance() -> None:
    """The mock and the daemon's tests import these modules, and have no llguidance."""
    code = (
        "import sys\n"
        "import llmvisor_runtimes.structured.compiler\n"
        "print('llguidance' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["False", "False"]
