"""What a JSON Schema lets through fits it, whatever is chosen among the tokens that it allows.

Schemas by chance and as applications send them are followed to the end: the text parses, validates, and has no
whitespace between its values. Ranges and the properties of an object are what the schema says, and keywords that say
nothing are left out.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.grammars import COMPILER, END, ENDS, TOKENS, accepts
from tests.support.json_schemas import corpus_schemas, is_valid, json_schemas, validate, write_at_random

from llmvisor_runtimes.protocol import Grammar


@settings(max_examples=200, deadline=None)
@given(schema=json_schemas(), seed=st.integers(0, 2**32))
def test_any_finished_text_fits_its_schema(schema: str, seed: int) -> None:
    """1. A schema. 2. Tokens by chance among the allowed. Result: the text parses, validates, is compact."""
    constraint = COMPILER.compile(Grammar("json_schema", schema))
    result = write_at_random(constraint, TOKENS, end_tokens=ENDS, seed=seed)
    if result.finished:
        validate(schema, result.text.decode())


@pytest.mark.parametrize("path", corpus_schemas(), ids=lambda path: path.stem)
def test_real_schema_is_followed(path: Path) -> None:
    """Schemas as applications send them compile, and what comes out fits them."""
    schema = path.read_text()
    finished = 0
    for seed in range(12):
        constraint = COMPILER.compile(Grammar("json_schema", schema))
        result = write_at_random(constraint, TOKENS, end_tokens=ENDS, seed=seed, tokens_max=3000)
        if result.finished:
            finished += 1
            validate(schema, result.text.decode())
    assert finished >= 6


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_whitespace_never_comes_between_values(kind: str) -> None:
    """No mask allows whitespace outside a string, so none can go on for ever; not even where the schema asks for it."""
    schema = '{"type":"object","additionalProperties":{"type":"integer"},"x-guidance":{"whitespace_flexible":true}}'
    matcher = COMPILER.compile(Grammar(kind, schema if kind == "json_schema" else "")).matcher()  # type: ignore[arg-type]
    for byte in b'{"a":[1,2],"b":3}' if kind == "json_object" else b'{"a":12,"b":3}':
        mask = int.from_bytes(matcher.mask(), "little")
        assert not any(mask >> space & 1 for space in b"\n\t\r")
        assert not matcher.consume(ord("\n"))
        assert matcher.consume(byte)
    assert matcher.finished


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("true", '{"any":[1]}'),
        ('{"type":"array","uniqueItems":false,"items":{"type":"integer"}}', "[1,1]"),
        ('{"type":"string","format":"a-format-of-ours"}', '"x"'),
        ('{"$schema":"https://example.org/mine","type":"null"}', "null"),
        (
            '{"type":"object","properties":{"format":{"const":1},"x-guidance":{"const":2}},"required":["format"]}',
            '{"format":1}',
        ),
        ('{"oneOf":[{"type":"string"},{"type":"null"}]}', "null"),
        ('{"type":"object","properties":{"next":{"$ref":"#"}}}', '{"next":{"next":{}}}'),
    ],
)
def test_what_says_nothing_is_left_out(schema: str, text: str) -> None:
    """Keywords that only remark on a value, or allow everything, are no reason to refuse a schema."""
    matcher = COMPILER.compile(Grammar("json_schema", schema)).matcher()
    assert all(matcher.consume(byte) for byte in text.encode())
    assert matcher.finished or matcher.consume(END)


@pytest.mark.parametrize("low", [None, "minimum", "exclusiveMinimum"])
@pytest.mark.parametrize("high", [None, "maximum", "exclusiveMaximum"])
def test_number_is_within_its_range(low: str | None, high: str | None) -> None:
    """However the bounds lie and a number is written, at most what is within them is let through."""
    ends = [-10.5, -10, -0.5, 0, 0.25, 0.5, 1, 1.5, 3]
    numbers = [quarter / 4 for quarter in range(-44, 20)]
    texts = {text for number in numbers for text in (f"{number:g}", f"{number:.3f}", f"{number:.2f}0", f"{number:g}e0")}
    tried = 0
    for first, second in itertools.product(ends if low else [None], ends if high else [None]):
        if first is not None and second is not None and first >= second:
            continue
        schema = {"type": "number", **({low: first} if low else {}), **({high: second} if high else {})}
        constraint = COMPILER.compile(Grammar("json_schema", json.dumps(schema)))
        for text in {*texts, "-0"}:
            tried += accepts(constraint, text)
            assert not accepts(constraint, text) or is_valid(schema, text), (schema, text)
    assert tried > 20


@pytest.mark.parametrize(
    ("schema", "open"),
    [
        ('{"type":"object","properties":{"a":{}}}', False),
        ('{"$ref":"#/$defs/x","$defs":{"x":{"type":"object","properties":{"a":{}}}}}', False),
        ('{"anyOf":[{"type":"object","properties":{"a":{}}},{"type":"null"}]}', False),
        ('{"type":"object","properties":{"a":{}},"additionalProperties":true}', True),
        ('{"type":"object","properties":{"a":{}},"required":["a"],"minProperties":2}', True),
        ('{"type":"object","properties":{"a":{}},"required":["other"]}', True),
        ('{"type":"object","properties":{"a":{}},"anyOf":[{"properties":{"other":{}}}]}', True),
        ('{"allOf":[{"type":"object","properties":{"a":{}}},{"properties":{"other":{}},"required":["other"]}]}', True),
        ('{"type":"object","properties":{}}', True),
    ],
)
def test_object_gets_only_the_properties_it_names(schema: str, open: bool) -> None:
    """Not so where it says that there may be others, needs others, or is put together from parts."""
    matcher = COMPILER.compile(Grammar("json_schema", schema)).matcher()
    beginning = b'{"a":1,"' if '"required":["a"]' in schema else b'{"'
    assert all(matcher.consume(byte) for byte in beginning)
    assert matcher.consume(ord("o")) is open
