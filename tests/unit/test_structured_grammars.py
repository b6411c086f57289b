"""Regular expressions, choices, Lark and GBNF grammars: each is followed to its end, or refused with the reason.

Grammars that go on for ever, or would explode, stop nobody: compiling one and asking for its masks end within a bound.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.grammars import COMPILER, ENDS, TOKENS, refusal, written
from tests.support.json_schemas import write_at_random

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.sampled_from(
        [
            "ab?c",
            "^(yes|no)$",
            "[a-z]+@[a-z]+\\.(com|org)",
            "\\d{3}-\\d{4}",
            "a/b\\\\c",
            "(?i)x{2,4}",
            "größe|🙂",
            "a\nb",
        ]
    ),
    seed=st.integers(0, 2**32),
)
def test_regex_is_matched_from_end_to_end(pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, written("regex", pattern, seed=seed))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=20), seed=st.integers(0, 2**32))
def test_choice_gives_one_of_the_texts(texts: list[str], seed: int) -> None:
    """Also where one begins with another, is empty, or has quotes, control characters and line ends in it."""
    assert written("choice", json.dumps(texts), seed=seed) in texts


def test_every_text_of_a_choice_can_come() -> None:
    texts = ["yes", "no", "", "yes, of course", 'quo"te']
    assert {written("choice", json.dumps(texts), seed=seed) for seed in range(60)} == set(texts)


def test_lark_grammar_is_followed() -> None:
    """Rules, terminals, and a schema inside."""
    grammar = 'start: "<" NAME ">" value\nNAME: /[a-z]{1,4}/\nvalue: %json {"type":"integer"}'
    for seed in range(10):
        assert re.fullmatch(r"<[a-z]{1,4}>-?\d+", written("lark", grammar, seed=seed))


def test_gbnf_grammar_is_followed() -> None:
    """llama.cpp's own notation: comments, repetition, groups, classes, rules with dashes."""
    grammar = """
    # A list of animals
    root ::= "- " animal-name ("\\n- " animal-name){0,2}
    animal-name ::= [A-Z] [a-z]+ | "the " ("cat" | "dog")
    """
    for seed in range(20):
        text = written("gbnf", grammar, seed=seed, closing=0)
        assert re.fullmatch(r"(- ([A-Z][a-z]+|the (cat|dog))(\n|$)){1,3}", text), text


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(?=a)", "look-around"),
        ("regex", "[", "unclosed"),
        ("regex", "(a)\\1", "backreferences"),
        ("regex", "[^\\d\\D]", "nothing can come next"),
        ("regex", "(" * 5000 + "a" + ")" * 5000, "nest"),
        ("choice", "yes", "JSON list of texts"),
        ("choice", "[1]", "JSON list of texts"),
        ("choice", "[]", "among 0 texts"),
        ("choice", json.dumps([str(number) for number in range(limits.grammar_texts_max + 1)]), "texts, outside"),
        ("lark", "", "no start rule"),
        ("lark", "start: x", "unknown name"),
        ("lark", "garbage {{{", "Expected"),
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ("lark", 'start: start "a"', "nothing can come next"),
        ("lark", "start: <|unheard of|>", ""),
        ("gbnf", "root ::= x", "'x' not found"),
        ("gbnf", 'other ::= "a"', "root"),
        ("gbnf", "root ::= [a", "Unexpected end"),
        ("gbnf", 'root ::= "a\\', "cannot be"),
        ("gbnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ("gbnf", "".join(f'r{number} ::= "a"\n' for number in range(600)), "more than"),
    ],
    ids=lambda value: value[:20],
)
def test_grammar_that_cannot_be_used_is_refused_with_the_reason(kind: str, source: str, reason: str) -> None:
    assert reason in refusal(kind, source)


ENDLESS = 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x" | d{1000}\nd: /x+/\n'


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("lark", ENDLESS),
        ("lark", "start: A A\nA: /x+/"),
        ("lark", '%llguidance {"no_forcing": false}\nstart: ("a" | "b") A A\nA: /x+/'),
        ("gbnf", 'root ::= x x\nx ::= "x"+'),
    ],
)
def test_text_that_goes_on_for_ever_stops_nobody(kind: str, source: str) -> None:
    """Where the only way on is the same byte for ever, compiling, and each mask, comes to its end all the same."""
    # In a process of its own, for what hangs does so in native code, which no timeout of a test ends.
    program = (
        "import sys; from llmvisor_runtimes.protocol import Grammar\n"
        "from llmvisor_runtimes.structured.compiler import GrammarCompiler\n"
        "tokens = [bytes([byte]) for byte in range(256)] + [b'']\n"
        "matcher = GrammarCompiler(tokens, end_tokens=[256]).compile(Grammar(*sys.argv[1:])).matcher()\n"
        "print([matcher.consume(byte) and len(matcher.mask()) for byte in b'xxx'] if matcher.mask()[15] & 1 else 'a')\n"
    )
    command = [sys.executable, "-c", program, kind, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() in ("[36, 36, 36]", "a"), done.stderr


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "((((a{1000}){1000}){1000}){1000}){1000}"),
        ("lark", 'start: a{1000000}\na: b{1000000}\nb: "x"'),
        ("lark", 'start: a{1000000}\na: b{1000000}\nb: /x+/ | "y"'),
        ("regex", "(.*a.{200}.*b){5}"),
        ("regex", "((a|b|ab){1,1000}){1,1000}x"),
        ("regex", "(a?){2000}a{2000}"),
        ("regex", "(x+x+)+y"),
        ("json_schema", '{"type":"string","pattern":"^(([a-z])+.)+[A-Z]([a-z])+$"}'),
        ("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":100000}'),
        ("json_schema", json.dumps({"allOf": [{"properties": {f"k{n}": {}}} for n in range(4000)]})),
        ("json_schema", json.dumps({"type": "object", "properties": {f"k{n}": {"type": "null"} for n in range(4000)}})),
        ("json_schema", json.dumps({"enum": [f"value {number}" for number in range(15_000)]})),
        ("lark", "start: " + " | ".join(f'"text{number}"' for number in range(15_000))),
        ("lark", 'start: x{1000000}\nx: "b" | x x'),
    ],
    ids=lambda value: value[:40],
)
def test_bomb_ends_within_a_bound(kind: str, source: str) -> None:
    """What would explode is refused, or followed for a while; neither takes long."""
    started = time.monotonic()
    with suppress(RequestError):
        constraint = COMPILER.compile(Grammar(kind, source))  # type: ignore[arg-type]
        write_at_random(constraint, TOKENS, end_tokens=ENDS, seed=1, tokens_max=40, closing=0)
    assert time.monotonic() - started < 20
