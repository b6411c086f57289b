"""What a grammar lets through is what it describes, whatever is chosen among the tokens that it allows."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.json_schemas import corpus_schemas, is_valid, json_schemas, validate, write_at_random

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured import Constraint
from llmvisor_runtimes.structured.compiler import GrammarCompiler
from llmvisor_runtimes.structured.graph import Graph, Schema

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


# -------------------------------------------------------------------------------------------------------- JSON Schema


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


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether a text is let through to its end."""
    matcher = constraint.matcher()
    return all(matcher.consume(byte) for byte in text.encode()) and (matcher.finished or matcher.consume(END))


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


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "has to be a JSON object"),
        ("false", "nothing fits"),
        ('{"minimum": NaN}', "NaN is no JSON"),
        ('{"type":"strange"}', "strange"),
        ('{"not":{"type":"string"}}', "not"),
        ('{"type":"array","uniqueItems":true}', "uniqueItems"),
        ('{"if":{"type":"string"},"then":{"maxLength":2}}', "if"),
        ('{"type":"string","minLength":3,"maxLength":2}', "Unsatisfiable"),
        ('{"allOf":[{"type":"string"},{"type":"integer"}]}', "Unsatisfiable"),
        ('{"type":"object","required":["a"],"additionalProperties":false}', "Unsatisfiable"),
        ('{"oneOf":[{"type":"integer"},{"type":"number"}]}', "oneOf"),
        ('{"type":"string","pattern":"(?=a)b"}', "look-around"),
        ('{"$ref":"https://example.org/other.json"}', "example.org"),
        ('{"$ref":"#/$defs/none"}', "none"),
        ('{"$ref":"#"}', "endless"),
        ('{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}', "endless"),
        ('{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}', "endless"),
        ('{"type":"array","items":{"$ref":"#"},"minItems":1}', "endless"),
        ('{"anyOf":[{"type":"array","prefixItems":[{"$ref":"#"}],"minItems":1}]}', "endless"),
        ('{"items":' * 100 + "{}" + "}" * 100, "deeper than"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "deeper than"),
        (json.dumps({"anyOf": [{"const": number} for number in range(9000)]}), "more than"),
        (json.dumps({"const": "x" * limits.grammar_source_bytes_max}), "longer than"),
    ],
    ids=lambda value: value[:40],
)
def test_schema_that_cannot_be_used_is_refused_with_the_reason(schema: str, reason: str) -> None:
    """Wrong, unknown, contradictory, endless and huge schemas: each is told apart in words."""
    message = refusal("json_schema", schema)
    assert message.startswith("the JSON Schema cannot be used: ")
    assert reason in message


def nested(depth: int, **more: object) -> dict[str, object]:
    """Objects within objects, each required twice and of the same type twice."""
    schema: dict[str, object] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": ["object", "object"], "required": ["a", "a"], "properties": {"a": schema}, **more}
    return schema


def evaluations(schema: dict[str, object], references: Mapping[str, Schema] | None = None) -> tuple[bool, int]:
    """Whether a schema can end, and how many looks at a part that took."""
    graph = Graph(schema, references or {})
    return graph.can_end(), graph.evaluations


def test_repeated_names_cost_nothing() -> None:
    """Each part is looked at once, however often its name is required and its type told."""
    assert evaluations(nested(60)) == (True, 61)
    assert accepts(COMPILER.compile(Grammar("json_schema", json.dumps(nested(60) | {"type": "object"}))), "") is False


def test_references_cost_no_more_than_what_they_name() -> None:
    """A chain in the worse order, rings, and one place by many names: a few looks at each part."""
    names = [f"d{number}" for number in range(250)]
    following = [*names[1:], "d0"]
    links: dict[str, object] = {
        name: {"anyOf": [{"$ref": f"#/$defs/{after}"}, {"$ref": f"#0/$defs/{after}"}, {"type": "null"}]}
        for name, after in zip(names, following, strict=True)
    }
    references = {f"{start}/$defs/{name}": links[name] for name in names for start in ("#", "#0")}
    root: dict[str, object] = {"$ref": "#/$defs/d0", "$defs": links}
    ends, looks = evaluations(root, references)  # type: ignore[arg-type]
    assert ends
    assert looks <= 3 * (4 * len(names) + 1)
    for last in ({"type": "null"}, {"$ref": "#/$defs/d0"}):
        links = {
            name: {"type": "object", "required": [after] * 5, "properties": {after: {"$ref": f"#/$defs/{after}"}}}
            for name, after in zip(names, following, strict=True)
        }
        links[names[-1]] = last
        ends, looks = evaluations(
            {"$ref": "#/$defs/d0", "$defs": links},
            {f"#/$defs/{name}": links[name] for name in names},  # type: ignore[arg-type]
        )
        assert ends is (last == {"type": "null"})
        assert looks <= 3 * (2 * len(names) + 1)


def test_schema_of_many_references_compiles() -> None:
    """27 kB of definitions that refer to each other by two spellings of each name."""
    definitions = {
        f"d{number}": {
            "type": "object",
            "required": ["a", "a", "b"],
            "properties": {"a": {"$ref": f"#/$defs/d{number + 1}"}, "b": {"$ref": f"#/$defs/d{number + 1}"}},
            "description": "x" * 60,
        }
        for number in range(120)
    } | {"d120": {"type": "null"}}
    source = json.dumps({"$ref": "#/$defs/d0", "$defs": definitions})
    assert len(source) > 25_000
    assert COMPILER.compile(Grammar("json_schema", source))


@pytest.mark.parametrize("name", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
@pytest.mark.parametrize("number", [10**400, -(10**400), 10**4000])
def test_number_that_no_float_holds_is_refused_or_followed(name: str, number: int) -> None:
    """As a bound of a range or a multiple: never an error of ours."""
    source = json.dumps({"type": "integer", "minimum": 0, "maximum": 5} | {name: number})
    with suppress(RequestError):
        assert COMPILER.compile(Grammar("json_schema", source))


@pytest.mark.parametrize("value", [7, 1000, 10**6, 9973, 0.01, 0.25, 1e-6])
def test_multiple_that_is_cheap_is_followed(value: float) -> None:
    assert COMPILER.compile(Grammar("json_schema", json.dumps({"type": "number", "multipleOf": value})))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ({"allOf": [{"type": "integer", "multipleOf": number} for number in (97, 89, 83)]}, "multipleOf"),
        ({"anyOf": [{"type": "integer", "multipleOf": 9000 + number} for number in range(9)]}, "multipleOf"),
        (
            {
                "items": {"multipleOf": 9973},
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "array", "items": {"type": "integer", "multipleOf": 9967}}},
            },
            "multipleOf",
        ),
        ({"allOf": [{"type": "string", "pattern": f".*a.{{{n}}}b.*"} for n in range(10, 30)]}, "patterns"),
        (
            {
                "allOf": [{"$ref": f"#/$defs/p{n}"} for n in range(10)],
                "$defs": {f"p{n}": {"properties": {"x": {"pattern": f"a.{{{n}}}b"}}} for n in range(10)},
            },
            "patterns",
        ),
    ],
    ids=["prime", "product", "sum", "beside a reference", "allOf", "references"],
)
def test_automata_that_would_be_huge_are_refused(schema: dict[str, object], reason: str) -> None:
    """Also within a Lark grammar, where llguidance compiles it just the same."""
    source = json.dumps(schema)
    assert reason in refusal("json_schema", source)
    assert reason in refusal("lark", f"start: x\nx: %json {source}")


def test_patterns_that_do_not_meet_are_as_many_as_one_likes() -> None:
    """Fifty properties with a pattern each, in an object that is put together from two."""
    halves = [{"properties": {f"{half}{n}": {"pattern": f"^a{{{n}}}$"} for n in range(25)}} for half in "ab"]
    assert COMPILER.compile(Grammar("json_schema", json.dumps({"type": "object", "allOf": halves})))


# ------------------------------------------------------------------------------------------------------- other kinds


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
