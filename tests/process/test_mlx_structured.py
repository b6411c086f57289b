"""Texts held to a grammar by the MLX engine: the same compiler and the same promises as with llama.cpp.

The model's weights are random, its vocabulary is a real one of 49,152 tokens that cut everything anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.json_schemas import corpus_schemas, json_schemas, validate
from tests.support.mlx_driver import MlxDriver, mlx_driver
from tests.support.mlx_models import tiny_folder

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.mlx.sequence import Choice
from llmvisor_runtimes.protocol import Generate, Grammar, Sampling, TextPrompt

PROMPT = "Write:"
PAIR = '{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":99},"b":{"enum":["x","yy"]}},"required":["a","b"],"additionalProperties":false}'  # noqa: E501


@pytest.fixture(scope="module")
def driver() -> Iterator[MlxDriver]:
    with mlx_driver(tiny_folder(), parallel=4, n_ctx=2048) as driver:
        yield driver


def ending(driver: MlxDriver) -> dict[int, float]:
    """Biases towards what ends strings, objects and lists: random weights would write on and on."""
    texts = ('"', "}", "]", '"}', '"]', '",', "},", '"}]')
    tokens = [driver.backend.tokenize(TextPrompt(text), add_special=False, parse_special=False) for text in texts]
    return {ids[0]: 12.0 for ids in tokens if len(ids) == 1}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=json_schemas(), seed=st.integers(0, 2**31))
def test_any_finished_text_fits_its_schema(driver: MlxDriver, schema: str, seed: int) -> None:
    """1. A schema of common keywords, two texts at once. Result: all that end by themselves parse and validate."""
    sampling = Sampling(temperature=1, top_k=0, top_p=1, seed=seed, logit_bias=ending(driver))
    id = driver.submit(PROMPT, grammar=Grammar("json_schema", schema), sampling=sampling, n=2, max_tokens=40)
    driver.run()
    for index in range(2):
        output = driver.outputs[id, index]
        assert output.finish in {"stop", "length"}
        if output.finish == "stop":
            validate(schema, output.text)


def test_real_schemas_are_followed(driver: MlxDriver) -> None:
    """What people ask for, all at once: each text that ends by itself validates, and some do."""
    schemas = [path.read_text() for path in corpus_schemas()]
    sampling = Sampling(temperature=1, top_k=0, top_p=1, seed=11, logit_bias=ending(driver))
    ids = [
        driver.submit(PROMPT, grammar=Grammar("json_schema", schema), sampling=sampling, max_tokens=120)
        for schema in schemas
    ]
    driver.run()
    finished = 0
    for id, schema in zip(ids, schemas, strict=True):
        output = driver.outputs[id, 0]
        if output.finish == "stop":
            finished += 1
            validate(schema, output.text)
    assert finished >= len(schemas) // 4


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "ab?c[0-9]{3}"), "ab?c[0-9]{3}"),
        (Grammar("choice", '["yes","no","größer"]'), "yes|no|größer"),
        (Grammar("lark", 'start: "<" /[a-z]{3}/ ">"'), "<[a-z]{3}>"),
        (Grammar("gbnf", 'root ::= ("a" | "b")? [0-9] [0-9]\n'), "[ab]?[0-9][0-9]"),
        (Grammar("json_schema", PAIR), '{"a":[0-9]{1,2},"b":"(x|yy)"}'),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_each_kind_of_grammar_is_followed(
    driver: MlxDriver, grammar: Grammar, pattern: str, temperature: float
) -> None:
    """It ends by itself, with `stop`, at the first place where nothing but the end may follow."""
    sampling = Sampling(temperature=temperature, seed=3)
    output = driver.generate(PROMPT, grammar=grammar, sampling=sampling, max_tokens=100)
    assert output.finish == "stop"
    assert re.fullmatch(pattern, output.text), output.text


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1, xtc_probability=1, xtc_threshold=0.1, seed=1),
        Sampling(temperature=2, min_p=0.2, repeat_penalty=1.8, seed=1),
        Sampling(temperature=1, top_p=0, seed=1),
        Sampling(temperature=0, repeat_penalty=1.5, frequency_penalty=2),
        Sampling(temperature=1, seed=1, logit_bias=dict.fromkeys(range(49152), -math.inf)),
        Sampling(temperature=0, logit_bias=dict.fromkeys(range(49152), -100.0)),
        Sampling(temperature=1, seed=1, logit_bias={2: 100.0, 42: 100.0}),
    ],
    ids=["xtc", "penalties", "top_p 0", "greedy", "all banned", "all unwanted", "favoured"],
)
def test_no_sampling_breaks_a_grammar(driver: MlxDriver, sampling: Sampling) -> None:
    """Samplers that weigh what is improbable, and biases against all that is allowed, choose among what fits."""
    output = driver.generate(PROMPT, grammar=Grammar("json_schema", PAIR), sampling=sampling, max_tokens=60)
    assert output.finish == "stop"
    validate(PAIR, output.text)


def test_ignoring_the_end_does_not_break_a_grammar(driver: MlxDriver) -> None:
    """Nothing may follow, so it ends; what may go on does."""
    assert driver.generate(PROMPT, grammar=Grammar("regex", "abc"), ignore_eos=True).text == "abc"
    output = driver.generate(PROMPT, grammar=Grammar("regex", "a+"), ignore_eos=True, max_tokens=10)
    assert (output.finish, set(output.text), len(output.tokens)) == ("length", {"a"}, 10)


class FailsAt:
    """A grammar that lets everything through, and raises when so many tokens have been written."""

    finished = False

    def __init__(self, left: int, error: Exception, size: int) -> None:
        self._left, self._error, self._size = left, error, size

    def matcher(self) -> FailsAt:
        return self

    def mask(self) -> bytearray:
        return bytearray(b"\xff" * (self._size // 8 + 1))

    def consume(self, token: int) -> bool:
        del token
        self._left -= 1
        if self._left < 0:
            raise self._error
        return True


@pytest.mark.parametrize("error", [RequestError("invalid_value", "no further"), ZeroDivisionError("no further")])
def test_grammar_that_fails_over_a_token_fails_its_request_alone(
    driver: MlxDriver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The error comes out of the batch generator's depth; the other text of the batch goes on to its end."""
    free = driver.submit(PROMPT, max_tokens=20, ignore_eos=True)
    grammar = FailsAt(3, error, driver.info.vocabulary)

    def constraint(_request: Generate) -> FailsAt:
        return grammar

    monkeypatch.setattr(driver.backend, "constraint", constraint)
    bad = driver.submit(PROMPT, max_tokens=20, ignore_eos=True)
    driver.run()
    assert driver.failed[bad].kind == ("invalid_value" if isinstance(error, RequestError) else "internal_error")
    assert "no further" in driver.failed[bad].message
    assert len(driver.outputs[free, 0].tokens) == 20
    assert driver.backend.progress().active == 0


def test_parser_that_raises_fails_its_request_alone(driver: MlxDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error while one text is taken apart: its request fails, the others go on."""
    free = driver.submit(PROMPT, max_tokens=20, ignore_eos=True)
    bad = driver.submit(PROMPT, n=2, max_tokens=20, ignore_eos=True)
    take = Choice.take

    def raises(choice: Choice, *given: object, **named: object) -> object:
        if choice.request.id == bad and choice.index == 1 and choice.tokens_left < 15:
            raise ZeroDivisionError("a parser's own")
        return take(choice, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Choice, "take", raises)
    driver.run()
    assert driver.failed[bad].kind == "internal_error"
    assert len(driver.outputs[free, 0].tokens) == 20
    assert driver.backend.progress().active == 0
