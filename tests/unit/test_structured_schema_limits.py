"""Which JSON Schemas are refused, and in which words; and that looking at one costs no more than it is long.

Schemas that are wrong, unknown, contradictory, endless or huge are told apart. Repeated names and references cost a
few looks at each part, and what would become a huge automaton is refused before it is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import pytest
from tests.support.grammars import COMPILER, accepts, refusal

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import Grammar
from llmvisor_runtimes.structured.graph import Graph, Schema


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
