"""Random JSON Schemas that can be met, a corpus of real ones, and texts that a constraint lets through."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llmvisor_runtimes.structured import Constraint

JsonObject = dict[str, object]

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "schemas"
DEPTH_MAX = 3

NAMES = st.sampled_from(
    [
        "id",
        "name",
        "a",
        "b",
        "items",
        "type",
        "format",
        "$ref",
        "größe",
        "a b",
        'quo"te',
        "back\\slash",
        "x/y",
        "🙂",
        "$defs",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.sampled_from([0.5, -1.25, 1e-3, 12.0]),
    st.sampled_from(["", "a", "yes", 'quo"te', "back\\slash", "tab\t", "größe 🙂", "\x01"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=4
)
PATTERNS = st.sampled_from(
    ["^[a-z]{2,5}$", "^\\d{3}-\\d{4}$", "ab", "^(yes|no)$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", "^\\S+@\\S+$", "x$"]
)
FORMATS = st.sampled_from(
    ["date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email", "hostname", "uri", "int32", "password"]
)


def corpus_schemas() -> list[Path]:
    """The files of the corpus."""
    found = sorted(CORPUS.glob("*.json"))
    assert found, f"no schemas in {CORPUS}"
    return found


def validate(schema_source: str, text: str) -> None:
    """Raises where a text is not JSON, is not compact, or does not fit the schema."""
    value = json.loads(text)
    Draft202012Validator(json.loads(schema_source)).validate(value)  # pyright: ignore[reportUnknownMemberType]
    outside_strings = text.split('"')[::2] if "\\" not in text else []
    assert not any(space in part for part in outside_strings for space in " \n\t\r"), text


def is_valid(schema: object, text: str) -> bool:
    """Whether a text is JSON that fits the schema."""
    validator = Draft202012Validator(cast("JsonObject", schema))
    return validator.is_valid(json.loads(text))  # pyright: ignore[reportUnknownMemberType]


@st.composite
def json_schemas(draw: st.DrawFn) -> str:
    """The source of a schema of what is common: each can be met, and all of its keywords are known."""
    names = draw(st.lists(st.sampled_from(["node", "leaf", "x~y"]), unique=True, max_size=2))
    root = draw(_schemas(0, tuple(names)))
    if names:
        root["$defs"] = {name: draw(_schemas(1, ())) for name in names}
        if "node" in names and draw(st.booleans()):
            # A tree: it contains itself, but need not.
            root["$defs"]["node"] = {  # pyright: ignore[reportIndexIssue]
                "type": "object",
                "properties": {"value": {"type": "integer"}, "next": {"anyOf": [_ref("node"), {"type": "null"}]}},
                "required": ["value"],
                "additionalProperties": False,
            }
    return json.dumps(root, ensure_ascii=draw(st.booleans()))


def _ref(name: str) -> JsonObject:
    return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1")}


@st.composite
def _schemas(draw: st.DrawFn, depth: int, names: tuple[str, ...]) -> JsonObject:
    scalars = [_strings(), _integers(), _numbers(), st.just({"type": "boolean"}), st.just({"type": "null"}), _fixed()]
    nested = [_objects(depth, names), _objects(depth, names), _arrays(depth, names), _unions(depth, names)]
    kinds = scalars + (nested * 2 if depth < DEPTH_MAX else [])
    if names:
        kinds.append(st.sampled_from(names).map(_ref))
    schema = dict(draw(st.one_of(kinds if depth else nested)))
    if "$ref" not in schema and draw(st.integers(0, 4)) == 0:
        schema |= {"title": "A title", "description": 'Says "what" it is.', "default": None, "examples": [1]}
    return schema


@st.composite
def _strings(draw: st.DrawFn) -> JsonObject:
    schema: JsonObject = {"type": "string"}
    match draw(st.integers(0, 4)):
        case 0:
            schema["pattern"] = draw(PATTERNS)
        case 1:
            schema["format"] = draw(FORMATS)
        case 2:
            schema["enum"] = draw(st.lists(st.sampled_from(["a", "b", "yes", 'quo"te', ""]), min_size=1, unique=True))
        case 3:
            least = draw(st.integers(0, 6))
            schema |= {"minLength": least, "maxLength": least + draw(st.integers(0, 6))}
        case _:
            pass
    return schema


@st.composite
def _integers(draw: st.DrawFn) -> JsonObject:
    schema: JsonObject = {"type": "integer"}
    least = draw(st.integers(-1000, 1000))
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = least
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = least + draw(st.integers(2, 5000))
    if draw(st.integers(0, 3)) == 0:
        schema = {"type": "integer", "multipleOf": draw(st.sampled_from([2, 5, 7, 10]))}
    return schema


@st.composite
def _numbers(draw: st.DrawFn) -> JsonObject:
    schema: JsonObject = {"type": "number"}
    least = draw(st.sampled_from([-10.5, -1, 0, 0.25, 3]))
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = least
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = least + draw(st.sampled_from([0.5, 10, 99.75]))
    return schema


@st.composite
def _fixed(draw: st.DrawFn) -> JsonObject:
    if draw(st.booleans()):
        return {"const": draw(VALUES)}
    return {"enum": draw(st.lists(VALUES, min_size=1, max_size=4))}


@st.composite
def _objects(draw: st.DrawFn, depth: int, names: tuple[str, ...]) -> JsonObject:
    keys = draw(st.lists(NAMES, unique=True, max_size=4))
    schema: JsonObject = {"type": "object", "properties": {key: draw(_schemas(depth + 1, names)) for key in keys}}
    if draw(st.booleans()):
        schema["required"] = draw(st.lists(st.sampled_from(keys), unique=True)) if keys else []
    match draw(st.integers(0, 4)):
        case 0:
            schema["additionalProperties"] = draw(st.one_of(_strings(), _integers()))
        case 1:
            schema["patternProperties"] = {"^x-": draw(_integers())}
            schema["additionalProperties"] = False
        case 2 | 3:
            schema["additionalProperties"] = False
        case _:
            pass
    return schema


@st.composite
def _arrays(draw: st.DrawFn, depth: int, names: tuple[str, ...]) -> JsonObject:
    schema: JsonObject = {"type": "array", "items": draw(_schemas(depth + 1, names))}
    if draw(st.integers(0, 3)) == 0:
        schema["prefixItems"] = [draw(_schemas(depth + 1, names)), draw(_integers())]
        schema["items"] = draw(st.one_of(st.just(False), _strings()))
        return schema
    if draw(st.booleans()):
        least = draw(st.integers(0, 2))
        schema["minItems"] = least
        schema["maxItems"] = least + draw(st.integers(0, 2))
    return schema


@st.composite
def _unions(draw: st.DrawFn, depth: int, names: tuple[str, ...]) -> JsonObject:
    match draw(st.integers(0, 3)):
        case 0:
            return {"anyOf": draw(st.lists(_schemas(depth + 1, names), min_size=1, max_size=3))}
        case 1:
            tags = draw(st.lists(st.sampled_from(["cat", "dog", "fish"]), min_size=2, unique=True))
            return {
                "oneOf": [_tagged(tag, draw(_integers())) for tag in tags],
                "discriminator": {"propertyName": "kind"},
            }
        case 2:
            return {
                "type": draw(
                    st.lists(st.sampled_from(["string", "null", "integer", "boolean"]), min_size=1, unique=True)
                )
            }
        case _:
            closed: list[JsonObject] = [
                {"type": "object", "properties": {"a": draw(_integers())}, "required": ["a"]},
                {"type": "object", "properties": {"b": draw(_strings())}},
            ]
            return {"allOf": closed}


def _tagged(tag: str, value: JsonObject) -> JsonObject:
    return {
        "type": "object",
        "properties": {"kind": {"const": tag}, "value": value},
        "required": ["kind", "value"],
        "additionalProperties": False,
    }


def allowed_tokens(mask: bytearray) -> list[int]:
    """The tokens whose bits are set."""
    return [8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


class Written:
    """A text that was written by chance."""

    def __init__(self, text: bytes, *, finished: bool) -> None:
        self.text = text
        self.finished = finished
        """It ended because it was complete."""


def write_at_random(
    constraint: Constraint,
    tokens: Sequence[bytes],
    *,
    end_tokens: Sequence[int],
    seed: int,
    tokens_max: int = 400,
    closing: float = 0.4,
) -> Written:
    """A text of tokens that the masks allow, each by chance; what brings it to an end comes with this probability."""
    chance = random.Random(seed)
    matcher = constraint.matcher()
    closers = {token for token, piece in enumerate(tokens) if piece.strip() in (b'"', b"}", b"]", b'"}', b'"]')}
    closers.update(end_tokens)
    text = b""
    for _ in range(tokens_max):
        allowed = allowed_tokens(matcher.mask())
        ends = [token for token in allowed if token in closers]
        token = chance.choice(ends if ends and chance.random() < closing else allowed)
        assert matcher.consume(token), (text, token)
        if token in end_tokens:
            assert matcher.finished
            return Written(text, finished=True)
        text += tokens[token]
        if matcher.finished:
            return Written(text, finished=True)
    return Written(text, finished=False)
