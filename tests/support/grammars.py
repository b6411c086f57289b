"""A compiler of grammars over a vocabulary of 264 tokens, what it lets through and what it refuses."""

from __future__ import annotations

import pytest
from tests.support.json_schemas import write_at_random

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured import Constraint
from llmvisor_runtimes.structured.compiler import GrammarCompiler

START, END, ALSO_END, MARK = 256, 257, 258, 259
TOKENS = [
    *(bytes([byte]) for byte in range(256)),
    b"<s>",
    b"</s>",
    b"<|end|>",
    b"<|call|>",
    b'":',
    b"true",
    b'{"a',
    b"",
]
ENDS = (END, ALSO_END)
COMPILER = GrammarCompiler(TOKENS, end_tokens=ENDS, special_tokens=[START, MARK])


def written(kind: str, source: str = "", *, seed: int = 0, **options: float) -> str:
    """A text by chance that has come to its end."""
    constraint = COMPILER.compile(Grammar(kind, source))  # type: ignore[arg-type]
    result = write_at_random(constraint, TOKENS, end_tokens=ENDS, seed=seed, **options)  # type: ignore[arg-type]
    assert result.finished, result.text
    return result.text.decode()


def refusal(kind: str, source: str) -> str:
    """Why a grammar is refused."""
    with pytest.raises(RequestError) as caught:
        COMPILER.compile(Grammar(kind, source))  # type: ignore[arg-type]
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "grammar")
    return caught.value.message


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether a text is let through to its end."""
    matcher = constraint.matcher()
    return all(matcher.consume(byte) for byte in text.encode()) and (matcher.finished or matcher.consume(END))
