"""Texts held to a grammar by the llama.cpp engine: complete ones fit it, whoever shares the batch, however they sample.

A tiny model of random weights writes what the masks allow and nothing better; the starter model shows that it is
language, on a vocabulary of 49,152 tokens that cut everything anywhere.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.json_schemas import corpus_schemas, json_schemas, validate, write_at_random
from tests.support.llama_driver import LlamaDriver, Output, llama_driver
from tests.support.models import starter_model_path
from tests.support.tiny_gguf import BOS, EOS, FIRST_BYTE, VOCABULARY, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import Constrains, RequestError
from llmvisor_runtimes.llamacpp.choice import Choice
from llmvisor_runtimes.llamacpp.engine import Engine
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.vocabulary import Vocabulary
from llmvisor_runtimes.output_format import make_compiler
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Generate, Grammar, Sampling, Tool
from llmvisor_runtimes.structured.compiler import GrammarCompiler

WARM = Sampling(temperature=1, top_k=0, top_p=1, seed=7)
PROMPT = [BOS, *byte_tokens("write:")]
PAIR = '{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":99},"b":{"enum":["x","yy"]}},"required":["a","b"],"additionalProperties":false}'  # noqa: E501
CITY = '{"type":"object","properties":{"city":{"type":"string","pattern":"^[A-Z][a-z]{2,8}$"}},"required":["city"]}'
TOOLS = [Tool("get_weather", "The weather of a city.", CITY.encode()), Tool("end", None, b"{}")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def driver(tiny: Path) -> Iterator[LlamaDriver]:
    with llama_driver(tiny, parallel=4, n_ctx=2048) as driver:
        yield driver


@pytest.fixture(scope="module")
def starter() -> Iterator[LlamaDriver]:
    with llama_driver(starter_model_path(), parallel=4, n_ctx=2048, n_threads=1) as driver:
        yield driver


def schema_grammar(schema: str = PAIR) -> Grammar:
    return Grammar("json_schema", schema)


# ------------------------------------------------------------------------------------------------- what it comes out as


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=json_schemas(), seed=st.integers(0, 2**31))
def test_any_finished_text_fits_its_schema(driver: LlamaDriver, schema: str, seed: int) -> None:
    """1. A schema of common keywords, four texts at once. Result: all that end by themselves parse and validate."""
    sampling = Sampling(temperature=1, top_k=0, top_p=1, seed=seed, logit_bias=dict.fromkeys(byte_tokens('"}]'), 4.0))
    id = driver.submit(PROMPT, grammar=schema_grammar(schema), sampling=sampling, n=4, max_tokens=150)
    driver.run()
    for index in range(4):
        output = driver.outputs[id, index]
        assert output.finish in {"stop", "length"}
        if output.finish == "stop":
            validate(schema, output.text)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "ab?c[0-9]{3}"), "ab?c[0-9]{3}"),
        (Grammar("choice", '["yes","no","größer"]'), "yes|no|größer"),
        (Grammar("lark", 'start: "<" /[a-z]{3}/ ">"'), "<[a-z]{3}>"),
        (Grammar("gbnf", 'root ::= ("a" | "b")? [0-9] [0-9]\n'), "[ab]?[0-9][0-9]"),
        (schema_grammar(), '{"a":[0-9]{1,2},"b":"(x|yy)"}'),
    ],
    ids=lambda value: value.kind if isinstance(value, Grammar) else "",
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_each_kind_of_grammar_is_followed(
    driver: LlamaDriver, grammar: Grammar, pattern: str, temperature: float
) -> None:
    """It ends by itself, with `stop`, at the first place where nothing but the end may follow."""
    output = driver.generate(
        PROMPT, grammar=grammar, sampling=Sampling(temperature=temperature, seed=3), max_tokens=100
    )
    assert output.finish == "stop"
    assert re.fullmatch(pattern, output.text), output.text


def test_json_object_is_an_object(driver: LlamaDriver) -> None:
    """Whatever is in it: it parses."""
    sampling = Sampling(temperature=1, top_k=0, seed=5, logit_bias=dict.fromkeys(byte_tokens('"}]'), 3.0))
    id = driver.submit(PROMPT, grammar=Grammar("json_object"), sampling=sampling, n=4, max_tokens=200)
    driver.run()
    finished = [output for index in range(4) if (output := driver.outputs[id, index]).finish == "stop"]
    assert finished
    assert all(isinstance(json.loads(output.text), dict) for output in finished)


def test_text_cut_by_max_tokens_says_length(driver: LlamaDriver) -> None:
    output = driver.generate(PROMPT, grammar=schema_grammar(), max_tokens=5)
    assert (output.finish, output.text) == ("length", '{"a":')


def test_text_complete_with_its_last_token_says_stop(driver: LlamaDriver) -> None:
    """`max_tokens` that is just enough cuts nothing off."""
    output = driver.generate(PROMPT, grammar=Grammar("regex", "abc"), max_tokens=3)
    assert (output.finish, output.text) == ("stop", "abc")


def test_stop_strings_end_a_constrained_text(driver: LlamaDriver) -> None:
    output = driver.generate(PROMPT, grammar=schema_grammar(), stop=['","b"', ',"b"'], max_tokens=50)
    assert output.finish == "stop"
    assert re.fullmatch(r'{"a":[0-9]{1,2}', output.text)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1, top_k=0, typical_p=0.4, seed=1),
        Sampling(temperature=1, mirostat=1, seed=1),
        Sampling(temperature=1, mirostat=2, seed=1),
        Sampling(temperature=1, xtc_probability=1, xtc_threshold=0.1, seed=1),
        Sampling(temperature=2, min_p=0.2, repeat_penalty=1.8, dry_multiplier=2, seed=1),
        Sampling(temperature=0, repeat_penalty=1.5, frequency_penalty=2),
        Sampling(temperature=0, logit_bias={FIRST_BYTE + ord("a"): -math.inf, FIRST_BYTE + ord("{"): -math.inf}),
        Sampling(temperature=1, seed=1, logit_bias=dict.fromkeys(range(FIRST_BYTE, FIRST_BYTE + 256), -math.inf)),
        Sampling(temperature=1, seed=1, logit_bias={EOS: 100.0, FIRST_BYTE + 255: 100.0}),
    ],
    ids=["typical_p", "mirostat 1", "mirostat 2", "xtc", "penalties", "greedy", "one banned", "all banned", "favoured"],
)
def test_no_sampling_breaks_a_grammar(driver: LlamaDriver, sampling: Sampling) -> None:
    """Samplers that weigh what is improbable, and biases against all that is allowed, choose among what fits."""
    output = driver.generate(PROMPT, grammar=schema_grammar(), sampling=sampling, max_tokens=60)
    assert output.finish == "stop"
    validate(PAIR, output.text)


def test_ignoring_the_end_does_not_break_a_grammar(driver: LlamaDriver) -> None:
    """Nothing may follow, so it ends; what may go on does."""
    assert driver.generate(PROMPT, grammar=Grammar("regex", "abc"), ignore_eos=True).text == "abc"
    output = driver.generate(PROMPT, grammar=Grammar("regex", "a+"), ignore_eos=True, max_tokens=20)
    assert (output.finish, output.text) == ("length", "a" * 20)


# ------------------------------------------------------------------------------------------------------- beside others


def test_batched_texts_do_not_touch_each_other(driver: LlamaDriver) -> None:
    """1. A free text alone. 2. The same beside three constrained ones. Result: the same text, and each of them fits."""
    alone = driver.generate(PROMPT, max_tokens=30, ignore_eos=True, logprobs=3)
    free = driver.submit(PROMPT, max_tokens=30, ignore_eos=True, logprobs=3)
    grammars = [schema_grammar(), Grammar("regex", "[0-9]{20}"), Grammar("choice", '["one","two"]')]
    ids = [driver.submit(PROMPT, grammar=grammar, sampling=WARM, max_tokens=60) for grammar in grammars]
    driver.run()
    assert driver.outputs[free, 0].text == alone.text
    texts = [driver.outputs[id, 0].text for id in ids]
    validate(PAIR, texts[0])
    assert re.fullmatch("[0-9]{20}", texts[1])
    assert texts[2] in {"one", "two"}


def test_each_choice_has_its_own_state(driver: LlamaDriver) -> None:
    """`n` choices sample differently, and each one's text fits."""
    id = driver.submit(PROMPT, grammar=schema_grammar(), sampling=WARM, n=4, max_tokens=60)
    driver.run()
    texts = [driver.outputs[id, index].text for index in range(4)]
    for text in texts:
        validate(PAIR, text)
    assert len(set(texts)) > 1


def test_seed_gives_the_same_constrained_text_again(driver: LlamaDriver) -> None:
    texts = {
        driver.generate(PROMPT, grammar=Grammar("regex", "[a-z]{40}"), sampling=WARM, max_tokens=60).text
        for _ in range(3)
    }
    assert len(texts) == 1


def test_text_is_streamed_piece_by_piece(driver: LlamaDriver) -> None:
    output = driver.generate(PROMPT, grammar=Grammar("regex", "[a-z]{30}"), sampling=WARM, max_tokens=60)
    assert len([text for text in output.texts if text]) == 30


def test_text_that_was_put_aside_goes_on_where_it_was(tiny: Path) -> None:
    """1. Four texts want more than the context holds. Result: some are computed again, and every text fits."""
    with llama_driver(tiny, parallel=4, n_ctx=128) as driver:
        preempted: list[Choice] = []
        admission = cast("Engine", driver.backend._engine)._admission  # pyright: ignore[reportPrivateUsage]
        preempt = admission.preempt

        def counted(choice: Choice) -> None:
            preempted.append(choice)
            preempt(choice)

        admission.preempt = counted  # type: ignore[method-assign]
        grammar = Grammar("regex", "([a-z]{9}[0-9]){7}")
        ids = [
            driver.submit([BOS, *byte_tokens(name)], grammar=grammar, sampling=WARM, max_tokens=100) for name in "abcd"
        ]
        driver.run()
        assert preempted
        for id in ids:
            assert re.fullmatch("([a-z]{9}[0-9]){7}", driver.outputs[id, 0].text)


def test_logprobs_are_the_models_own(driver: LlamaDriver) -> None:
    """1. A free text's first token. 2. Another one, forced. Result: the same distribution, in which it is unlikely."""
    free = driver.generate(PROMPT, max_tokens=1, logprobs=5).logprobs[0]
    forced = driver.generate(PROMPT, grammar=Grammar("regex", "~"), max_tokens=1, logprobs=5).logprobs[0]
    assert forced.token == FIRST_BYTE + ord("~")
    assert forced.top == free.top
    assert forced.logprob is not None
    assert forced.logprob < 0
    assert free.top[0].logprob == free.logprob


def test_guessing_ahead_changes_no_constrained_text(driver: LlamaDriver) -> None:
    """With prompt lookup the text is the one without it, and it fits."""
    prompt = [BOS, *byte_tokens('{"a":17,"b":"yy"}{"a":17,"b":"yy"}')]
    grammar = Grammar("lark", 'start: obj{6}\nobj: "{\\"a\\":" /[0-9]{2}/ ",\\"b\\":\\"yy\\"}"')
    plain = driver.generate(prompt, grammar=grammar, max_tokens=200)
    id = driver.submit(prompt, grammar=grammar, max_tokens=200, speculative="lookup")
    driver.run()
    assert driver.outputs[id, 0].text == plain.text
    assert driver.done[id].accepted_tokens > 10
    assert plain.finish == "stop"


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "grammar",
    [schema_grammar('{"not":{}}'), Grammar("regex", "("), Grammar("gbnf", "root ::= x"), Grammar("lark", "x")],
)
def test_grammar_that_cannot_be_compiled_is_refused(driver: LlamaDriver, grammar: Grammar) -> None:
    """Before the engine hears of it, with the reason."""
    with pytest.raises(RequestError, match="cannot be used") as caught:
        driver.submit(PROMPT, grammar=grammar)
    assert caught.value.kind == "invalid_value"
    assert driver.backend.delay_seconds() is None


def test_grammar_that_leads_nowhere_fails_its_request_alone(driver: LlamaDriver) -> None:
    """1. A dead end is reached beside a free text. Result: that request fails with the reason; the other ends well."""
    free = driver.submit(PROMPT, max_tokens=20, ignore_eos=True)
    dead = driver.submit(PROMPT, grammar=Grammar("lark", 'start: "ab" x\nx: x "y"'), n=2, max_tokens=20)
    driver.run()
    assert driver.failed[dead].kind == "invalid_value"
    assert "nothing can come next" in driver.failed[dead].message
    assert (driver.outputs[free, 0].finish, len(driver.outputs[free, 0].tokens)) == ("length", 20)
    assert driver.backend.progress().active == 0


def test_backend_says_that_it_can(driver: LlamaDriver) -> None:
    assert isinstance(driver.backend, Constrains)
    assert {"structured_output", "tools", "chat"} <= set(driver.info.capabilities)


# --------------------------------------------------------------------------------------------------------------- tools


def call_of(output: Output) -> tuple[str, dict[str, object]]:
    """The name and the arguments of the first call, put together."""
    deltas = [delta for delta in output.tool_calls if delta.index == 0]
    assert deltas[0].id
    return deltas[0].name or "", json.loads("".join(delta.arguments for delta in deltas))


@pytest.mark.parametrize("name", ["get_weather", "end"])
def test_required_call_is_made_by_a_model_that_knows_nothing(driver: LlamaDriver, name: str) -> None:
    """Random weights, and the call is one of the tool that was named, with arguments that fit."""
    conversation = ChatPrompt(
        [ChatMessage("user", "hi")], tools=TOOLS, tool_choice="required", tool_name=name, parallel_tool_calls=False
    )
    prompt = driver.backend.tokenize(conversation, add_special=True, parse_special=True)
    output = driver.generate(prompt, conversation=conversation, sampling=WARM, max_tokens=200)
    assert (output.finish, output.text) == ("tool_calls", "")
    called, arguments = call_of(output)
    assert called == name
    if name == "get_weather":
        assert re.fullmatch("[A-Z][a-z]{2,8}", str(arguments["city"]))


def test_call_cut_by_max_tokens_says_length(driver: LlamaDriver) -> None:
    conversation = ChatPrompt([ChatMessage("user", "hi")], tools=TOOLS, tool_choice="required", tool_name="get_weather")
    prompt = driver.backend.tokenize(conversation, add_special=True, parse_special=True)
    output = driver.generate(prompt, conversation=conversation, sampling=WARM, max_tokens=12)
    assert output.finish == "length"


# ---------------------------------------------------------------------------------------------------- the starter model


@pytest.fixture(scope="module")
def starter_vocabulary() -> Iterator[Vocabulary]:
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(starter_model_path()).encode(), params)
    yield Vocabulary(model)
    llama_cpp.llama_model_free(model)


@pytest.fixture(scope="module")
def starter_compiler(starter_vocabulary: Vocabulary) -> GrammarCompiler:
    return make_compiler(starter_vocabulary)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=json_schemas(), seed=st.integers(0, 2**31))
def test_tokens_of_a_real_vocabulary_write_only_what_fits(
    starter_vocabulary: Vocabulary, starter_compiler: GrammarCompiler, schema: str, seed: int
) -> None:
    """Tokens by chance of 49,152: they cut names, numbers and characters anywhere, and what is finished fits."""
    pieces = [starter_vocabulary.piece(token) for token in range(starter_vocabulary.size)]
    ends = sorted(starter_vocabulary.end_tokens)
    constraint = starter_compiler.compile(schema_grammar(schema))
    result = write_at_random(constraint, pieces, end_tokens=ends, seed=seed, tokens_max=60, closing=0.6)
    if result.finished:
        validate(schema, result.text.decode())


@pytest.mark.model
def test_starter_model_fills_in_real_schemas(starter: LlamaDriver) -> None:
    """Three schemas in one batch, greedy and sampled: what ends by itself fits, and most do."""
    schemas = {path.stem: path.read_text() for path in corpus_schemas()}
    names = ["weather_tool", "classification", "pydantic_union"]
    submitted: dict[int, str] = {}
    for name, sampling in itertools.product(names, [Sampling(temperature=0), Sampling(temperature=0.7, seed=1)]):
        conversation = ChatPrompt([ChatMessage("user", f"Give an example of a {name.replace('_', ' ')} as JSON.")])
        prompt = starter.backend.tokenize(conversation, add_special=True, parse_special=True)
        grammar = schema_grammar(schemas[name])
        id = starter.submit(prompt, conversation=conversation, grammar=grammar, sampling=sampling, max_tokens=80)
        submitted[id] = name
    starter.run()
    outputs = [(schemas[name], starter.outputs[id, 0]) for id, name in submitted.items()]
    finished = [(schema, output) for schema, output in outputs if output.finish == "stop"]
    assert len(finished) >= 3, [output.text for _, output in outputs]
    for schema, output in finished:
        validate(schema, output.text)


@pytest.mark.model
def test_starter_model_makes_a_valid_call_when_one_is_required(starter: LlamaDriver) -> None:
    """135 million parameters, and a tool is called with arguments that validate."""
    question = ChatMessage("user", "What is the weather in Paris?")
    conversation = ChatPrompt([question], tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    prompt = starter.backend.tokenize(conversation, add_special=True, parse_special=True)
    output = starter.generate(prompt, conversation=conversation, max_tokens=120)
    assert output.finish == "tool_calls"
    name, arguments = call_of(output)
    assert name in {"get_weather", "end"}
    assert name == "end" or re.fullmatch("[A-Z][a-z]{2,8}", str(arguments["city"]))


class FailsAt:
    """A matcher that lets everything through, and raises at one of the tokens that all of its kind consume."""

    finished = False

    def __init__(self, left: list[int], size: int) -> None:
        self._left, self._size = left, size

    def mask(self) -> bytearray:
        return bytearray(b"\xff" * (self._size // 8 + 1))

    def consume(self, token: int) -> bool:
        del token
        self._left[0] -= 1
        if self._left[0] < 0:
            raise RequestError("invalid_value", "no further", "grammar")
        return True


def test_second_choice_that_fails_takes_back_what_the_first_one_earned(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two choices, the second of which fails in a step in which the first got a token."""

    class Three:
        def __init__(self) -> None:
            self.left = [3]

        def matcher(self) -> FailsAt:
            return FailsAt(self.left, VOCABULARY)

    def constraint(_request: Generate) -> Three:
        return Three()

    monkeypatch.setattr(driver.backend, "constraint", constraint)
    id = driver.submit(PROMPT, n=2, max_tokens=20)
    driver.run()
    assert driver.failed[id].message == "no further"
    assert sum(len(driver.outputs[id, index].tokens) for index in range(2)) == 2, "the third is not told"


def test_parser_that_raises_fails_its_request_alone(
    driver: LlamaDriver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unforeseen error while one text is taken apart: that request fails, with the traceback in the log."""
    free = driver.submit(PROMPT, max_tokens=20, ignore_eos=True)
    bad = driver.submit(PROMPT, n=2, max_tokens=20, ignore_eos=True)
    driver.run(until=lambda: len(driver.outputs[bad, 1].tokens) > 2)
    take = Choice.take

    def raises(choice: Choice, *given: object, **named: object) -> object:
        if choice.request.id == bad and choice.index == 1:
            raise ZeroDivisionError("a parser's own")
        return take(choice, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Choice, "take", raises)
    driver.run()
    assert (driver.failed[bad].kind, driver.failed[bad].message) == (
        "internal_error",
        "ZeroDivisionError: a parser's own",
    )
    assert "Traceback" in capfd.readouterr().err
    assert len(driver.outputs[free, 0].tokens) == 20
    assert driver.backend.progress().active == 0


def test_grammar_that_can_be_read_in_very_many_ways_costs_no_step_much(starter_compiler: GrammarCompiler) -> None:
    """Its masks take longer with each token: it fails before one takes long enough to hold up whoever streams."""
    matcher = starter_compiler.compile(Grammar("lark", 'start: s\ns: s s s | s s | "a" | "b"')).matcher()
    (token,) = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.mask(), np.uint8), bitorder="little"))[:1]
    seconds: list[float] = []

    def write_on() -> None:
        while len(seconds) < 400:
            began = time.perf_counter()
            matcher.consume(int(token))
            matcher.mask()
            seconds.append(time.perf_counter() - began)

    with pytest.raises(RequestError, match="cannot be followed further"):
        write_on()
    assert max(seconds) < 0.25, "about 0.02 where nobody else computes"
