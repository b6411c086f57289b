"""Bodies of bytes: every way in which they can be wrong is one error with a place."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from llmvisor.errors import InvalidJson, InvalidRequest
from llmvisor.http.decode import BodyDecoder, shown
from llmvisor.http.openai.chat import ChatRequest
from llmvisor.http.openai.completions import CompletionRequest


class Inner(msgspec.Struct):
    text: Annotated[str, Meta(max_length=3)]


class Body(msgspec.Struct):
    inner: list[Inner]
    ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    table: dict[str, int] | None = None


DECODER = BodyDecoder(Body)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b'{"inner":[{"text":5}]}', "inner[0].text", "expected str, found 5"),
        (b'{"inner":[{"text":"a"},{"text":"long"}]}', "inner[1].text", 'found "long"'),
        (b'{"inner":[],"ratio":1.5}', "ratio", "expected float <= 1.0, found 1.5"),
        (b'{"inner":[],"ratio":"1"}', "ratio", 'expected float | null, found "1"'),
        (b'{"inner":[],"ratio":[1,2]}', "ratio", "found an array of 2"),
        (b'{"inner":[],"ratio":{"a":1}}', "ratio", "found an object"),
        (b'{"inner":[],"ratio":1e400}', "ratio", "Number out of range"),
        (b'{"inner":[],"ratio":' + b"9" * 500 + b"}", "ratio", "Number out of range"),
        (b'{"inner":[],"table":{"k":"v"}}', "table", "expected int"),
        (b'{"inner":[{}]}', "inner[0].text", "is required"),
        (b"{}", "inner", "is required"),
        (b"[]", None, "the body: expected object, found an array of 0"),
        (b"5", None, "the body: expected object"),
    ],
)
def test_wrong_value_tells_place_allowed_and_found(body: bytes, param: str | None, message: str) -> None:
    """The field's path, what may stand there, and what does."""
    with pytest.raises(InvalidRequest) as error:
        DECODER.decode(body)
    assert error.value.code == "invalid_value"
    assert error.value.param == param
    assert message in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b'{"inner":[]} x',
        b'{"inner":[],"ratio":NaN}',
        b'{"inner":[],"ratio":Infinity}',
        b'{"inner":[{"text":"\xff"}]}',
        b'{"inner":[{"text":"\\ud800"}]}',
        b'{"unknown":' + b"[" * 100_000,
        b'{"unknown":' + b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_no_json_is_invalid_json(body: bytes) -> None:
    """Malformed text, wrong UTF-8, lone surrogates and bottomless nesting are all the same to a client."""
    with pytest.raises(InvalidJson):
        DECODER.decode(body)


def test_unknown_fields_are_ignored() -> None:
    """What OpenAI adds tomorrow is no error today."""
    assert DECODER.decode(b'{"inner":[],"new":{"x":[1e400]}}') == Body(inner=[])


def test_shown_values_stay_short() -> None:
    """A message never carries a megabyte."""
    for value in ("x" * 10_000, 10**5000 // 7, ["x"] * 10_000, {"a": "x" * 10_000}):
        assert len(shown(value)) < 100


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    """Nothing but a request error ever comes out of a body."""
    for decoder in (BodyDecoder(ChatRequest), BodyDecoder(CompletionRequest)):
        with suppress(InvalidRequest):
            assert decoder.decode(body).n != 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted({*ChatRequest.__struct_fields__})), _json, max_size=6))
def test_any_json_makes_a_generation_or_is_refused(fields: dict[str, object]) -> None:
    """Whatever stands in the known fields, the outcome is a sound generation or a request error."""
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    with suppress(InvalidRequest):
        generation = BodyDecoder(ChatRequest).decode(msgspec.json.encode(body)).generation("req")
        assert 1 <= generation.n <= 16
        assert generation.sampling.temperature is None or 0 <= generation.sampling.temperature <= 2
