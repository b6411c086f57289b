"""The MLX engine on random weights: what it does with sequences shows in milliseconds, whatever they say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.support.mlx_driver import GREEDY, MlxDriver, Output, mlx_driver
from tests.support.mlx_models import tiny_folder

from llmvisor_runtimes.backend import Constrains, RequestError, SharesCores
from llmvisor_runtimes.protocol import (
    AdapterScale,
    ChatMessage,
    ChatPrompt,
    Generate,
    Grammar,
    InfillPrompt,
    Sampling,
    TextPrompt,
    Tool,
)

PROMPTS = ("Once upon a time", "The capital of France is", "In the year 1984 there was nobody in", "One")
LONG = "All work and no play makes Jack a dull boy. " * 40
EPSILON = 2e-3
"""Float noise of batches of other shapes, in log-probabilities."""
WARM = Sampling(temperature=1.0, seed=7, top_k=0, top_p=1.0)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def shared() -> Generator[MlxDriver]:
    with mlx_driver(tiny_folder(), n_ctx=4096) as driver:
        yield driver


def assert_same(first: Output, second: Output) -> None:
    """The same tokens, and log-probabilities that are equal up to noise."""
    assert first.tokens == second.tokens
    for left, right in zip(first.logprobs, second.logprobs, strict=True):
        assert left.logprob is not None
        assert right.logprob == pytest.approx(left.logprob, abs=EPSILON)


# ------------------------------------------------------------------------------------------------------------ decoding


def test_greedy_tokens_are_those_of_mlx_lm(shared: MlxDriver) -> None:
    """Result: the tokens that `mlx_lm.stream_generate` gives for the same prompts."""
    load = importlib.import_module("mlx_lm").load
    stream_generate = importlib.import_module("mlx_lm").stream_generate
    model, tokenizer = load(str(tiny_folder()))
    for text in PROMPTS:
        prompt = shared.backend.tokenize(_text(text), add_special=True, parse_special=True)
        assert prompt == tokenizer.encode(text)
        theirs = [response.token for response in stream_generate(model, tokenizer, prompt, max_tokens=24)]
        assert shared.generate(prompt, max_tokens=24).tokens == theirs


def test_streams_decoded_together_are_those_decoded_alone(shared: MlxDriver) -> None:
    """Four at once, of prompts of different lengths, one of them joining late and one leaving early."""
    alone = [shared.generate(text, max_tokens=20, logprobs=0, cache_prompt=False) for text in PROMPTS]
    ids = [shared.submit(text, max_tokens=20, logprobs=0, cache_prompt=False) for text in PROMPTS[:2]]
    ids.append(shared.submit(PROMPTS[2], max_tokens=3, cache_prompt=False))
    shared.run(lambda: len(shared.outputs[ids[0], 0].tokens) >= 5)
    ids.append(shared.submit(PROMPTS[3], max_tokens=20, logprobs=0, cache_prompt=False))
    shared.run()
    for place in (0, 1, 3):
        assert_same(alone[place], shared.outputs[ids[place], 0])
    assert shared.outputs[ids[2], 0].tokens == alone[2].tokens[:3]


def test_more_requests_than_slots_are_all_served(shared: MlxDriver) -> None:
    """Twelve requests on four slots end, each with its own text."""
    ids = [shared.submit(f"Number {number} is", max_tokens=5) for number in range(12)]
    shared.run()
    assert [len(shared.outputs[id, 0].tokens) for id in ids] == [5] * 12
    again = shared.generate("Number 11 is", max_tokens=5)
    assert again.tokens == shared.outputs[ids[11], 0].tokens


def test_choices_share_their_prompt_and_follow_their_seeds(shared: MlxDriver) -> None:
    """1. A long prompt with `n` of three. 2. Three requests with the seeds that the choices have.

    Result: the same texts, all different, and the prompt computed once.
    """
    before = shared.backend.progress().tokens
    id = shared.submit(LONG + "n", n=3, sampling=WARM, max_tokens=8, cache_prompt=False)
    shared.run()
    computed = shared.backend.progress().tokens - before
    texts = [shared.outputs[id, index].tokens for index in range(3)]
    prompt_tokens = shared.done[id].prompt_tokens
    assert prompt_tokens < computed < prompt_tokens + 3 * 10
    assert shared.done[id].completion_tokens == 24
    assert len({tuple(tokens) for tokens in texts}) == 3
    for index in range(3):
        sampling = Sampling(temperature=1.0, seed=7 + index, top_k=0, top_p=1.0)
        assert shared.generate(LONG + "n", sampling=sampling, max_tokens=8).tokens == texts[index]


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"temperature": 1e-6},
        {"logit_bias": {42: 100.0}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_samplers_that_leave_one_token_choose_it(shared: MlxDriver, changed: dict[str, Any]) -> None:
    """Each truncating sampler, at its narrowest, gives the greedy text; a large bias gives its token."""
    sampling = msgspec.structs.replace(WARM, **changed)
    sampled = shared.generate(PROMPTS[0], sampling=sampling, max_tokens=6).tokens
    biased = "logit_bias" in changed
    assert sampled == ([42] * 6 if biased else shared.generate(PROMPTS[0], max_tokens=6).tokens)


def test_penalties_keep_tokens_from_coming_again(shared: MlxDriver) -> None:
    """A token that a bias forces again and again gives way once its presence is punished by more than the bias."""
    biased = {42: 50.0}
    forced = Sampling(temperature=0, logit_bias=biased)
    assert shared.generate(PROMPTS[0], sampling=forced, max_tokens=4).tokens == [42] * 4
    for name, value in (("presence_penalty", 90.0), ("frequency_penalty", 90.0), ("repeat_penalty", 1e6)):
        sampling = msgspec.structs.replace(forced, **{name: value})
        assert shared.generate(PROMPTS[0], sampling=sampling, max_tokens=4).tokens.count(42) == 1, name


def test_end_token_ends_and_ignore_eos_goes_on(shared: MlxDriver) -> None:
    """The token that ends a text is no part of it; with `ignore_eos` it never comes."""
    (end,) = shared.backend.tokenize(_text("<|im_end|>"), add_special=False, parse_special=True)
    sampling = Sampling(temperature=0, logit_bias={end: 1000.0})
    ended = shared.generate(PROMPTS[0], sampling=sampling, max_tokens=5)
    assert (ended.finish, ended.text, ended.tokens) == ("stop", "", [end])
    going = shared.generate(PROMPTS[0], sampling=sampling, max_tokens=5, ignore_eos=True)
    assert (going.finish, len(going.tokens)) == ("length", 5)
    assert end not in going.tokens


def test_stop_string_cuts_the_text_and_its_logprobs(shared: MlxDriver) -> None:
    """The text ends before the stop string, and so do the log-probabilities that go with it."""
    whole = shared.generate(PROMPTS[0], max_tokens=12, logprobs=0)
    stop = whole.text[20:24]
    cut = shared.generate(PROMPTS[0], max_tokens=12, stop=[stop], logprobs=0)
    assert (cut.finish, cut.text) == ("stop", whole.text[: whole.text.index(stop)])
    assert 0 < len(cut.logprobs) < len(whole.logprobs)


def test_logprobs_are_the_models_own(shared: MlxDriver) -> None:
    """Alternatives come in order, hold the greedy token first, and no bias or grammar changes them."""
    free = shared.generate(PROMPTS[0], max_tokens=3, logprobs=5)
    for entry in free.logprobs:
        values = [top.logprob for top in entry.top]
        assert values == sorted(values, reverse=True)
        assert len(values) == 5
        assert entry.top[0].token == entry.token
    rare = free.logprobs[0].top[4].token
    biased = Sampling(temperature=0, logit_bias={rare: 1000.0}, presence_penalty=1.0)
    forced = shared.generate(PROMPTS[0], max_tokens=1, logprobs=5, sampling=biased).logprobs[0]
    assert forced.token == rare
    assert forced.logprob == pytest.approx(free.logprobs[0].top[4].logprob, abs=EPSILON)


def test_echo_scores_the_prompt(shared: MlxDriver) -> None:
    """1. A text is generated with log-probabilities. 2. It is echoed, as a prompt of which nothing more is wanted.

    Result: the same text, and for each of its tokens the same log-probability.
    """
    prompt = shared.backend.tokenize(_text(PROMPTS[0]), add_special=True, parse_special=True)
    written = shared.generate(prompt, max_tokens=10, logprobs=1)
    echoed = shared.generate(prompt + written.tokens, max_tokens=0, logprobs=1, echo=True)
    assert echoed.tokens == prompt + written.tokens
    assert echoed.text == PROMPTS[0] + written.text
    assert echoed.finish == "length"
    assert echoed.logprobs[0].logprob is None
    for left, right in zip(written.logprobs, echoed.logprobs[len(prompt) :], strict=True):
        assert right.logprob == pytest.approx(left.logprob, abs=EPSILON)


# ----------------------------------------------------------------------------------------------- cancelling and pausing


def test_cancel_ends_a_long_prompt_within_a_step(shared: MlxDriver) -> None:
    """Another stream goes on meanwhile, and its text is what it would have been."""
    expected = shared.generate(PROMPTS[1], max_tokens=12).tokens
    beside = shared.submit(PROMPTS[1], max_tokens=12)
    shared.step()
    long = shared.submit(list(range(1000, 4000)), max_tokens=5, n=2)
    shared.step()
    assert not shared.outputs[long, 0].tokens, "the prompt is not through yet"
    shared.backend.cancel(long)
    shared.step()
    assert [shared.outputs[long, index].finish for index in range(2)] == ["cancelled"] * 2
    assert shared.done[long].completion_tokens == 0
    shared.run()
    assert shared.outputs[beside, 0].tokens == expected
    assert shared.backend.progress().active == 0


def test_paused_request_goes_on_where_it_was(shared: MlxDriver) -> None:
    """With another stream beside it, and sampled: what comes after the pause is what would have come."""
    grammar = Grammar("regex", "[a-z]{30}")
    expected = shared.generate(PROMPTS[0], sampling=WARM, max_tokens=14, logprobs=1, grammar=grammar)
    id = shared.submit(PROMPTS[0], sampling=WARM, max_tokens=14, logprobs=1, grammar=grammar)
    shared.run(lambda: len(shared.outputs[id, 0].tokens) >= 4)
    shared.backend.pause(id)
    held = len(shared.outputs[id, 0].tokens)
    assert shared.backend.delay_seconds() is None
    shared.generate(PROMPTS[1], max_tokens=6)
    assert len(shared.outputs[id, 0].tokens) == held
    shared.backend.resume(id)
    shared.run()
    assert_same(expected, shared.outputs[id, 0])


def test_full_context_makes_the_youngest_wait() -> None:
    """Requests that do not fit together all end, with the texts that they have alone."""
    with mlx_driver(tiny_folder(), n_ctx=100) as driver:
        alone = [driver.generate(text, max_tokens=40).tokens for text in PROMPTS]
        ids = [driver.submit(text, max_tokens=40) for text in PROMPTS]
        most = 0
        while driver.backend.delay_seconds() == 0:
            driver.step()
            most = max(most, driver.backend.progress().kv_used)
        assert [driver.outputs[id, 0].tokens for id in ids] == alone
        assert 50 < most <= 100


# --------------------------------------------------------------------------------------------------------- prompt cache


def test_common_beginning_is_computed_once(shared: MlxDriver) -> None:
    """The second prompt takes what the first one computed, and its text is what it would be without."""
    fresh = shared.generate(LONG + "The second.", max_tokens=8, logprobs=1, cache_prompt=False)
    first = shared.submit(LONG + "The first.", max_tokens=4)
    shared.run()
    second = shared.submit(LONG + "The second.", max_tokens=8, logprobs=1)
    shared.run()
    assert shared.done[second].cached_tokens > 400
    assert shared.done[second].prompt_tokens - shared.done[second].cached_tokens < 10
    assert shared.done[first].completion_tokens == 4
    assert_same(fresh, shared.outputs[second, 0])


def test_next_turn_takes_the_whole_conversation_from_the_cache(shared: MlxDriver) -> None:
    """What was generated is reused too, not the prompt alone."""
    prompt = list(range(2000, 2100))
    answer = shared.generate(prompt, max_tokens=50)
    id = shared.submit([*prompt, *answer.tokens, 17, 18], max_tokens=2)
    shared.run()
    assert shared.done[id].cached_tokens >= 149


def test_requests_that_come_together_wait_for_their_common_beginning(shared: MlxDriver) -> None:
    """Of two with one long beginning, the second one waits for it rather than compute it as well."""
    text = LONG.replace("Jack", "Jill")
    ids = [shared.submit(text + name, max_tokens=3) for name in ("Ann", "Bob")]
    shared.run()
    assert shared.done[ids[0]].cached_tokens < 20
    assert shared.done[ids[1]].cached_tokens > 400


def test_cache_prompt_off_takes_and_leaves_nothing(shared: MlxDriver) -> None:
    """Neither its own prompt comes from the cache, nor another's from it."""
    text = LONG.replace("Jack", "Joan")
    for _ in range(2):
        id = shared.submit(text, max_tokens=2, cache_prompt=False)
        shared.run()
        assert shared.done[id].cached_tokens == 0


# ------------------------------------------------------------------------------------------------- grammars and tools


def test_structured_output_validates_beside_free_text(shared: MlxDriver) -> None:
    """Three choices held to a schema, sampled, with log-probabilities, in one batch with a free stream."""
    assert isinstance(shared.backend, Constrains)
    expected = shared.generate(PROMPTS[1], max_tokens=20).tokens
    free = shared.submit(PROMPTS[1], max_tokens=20)
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    id = shared.submit(PROMPTS[0], n=3, sampling=WARM, grammar=grammar, max_tokens=60, logprobs=1)
    shared.run()
    for index in range(3):
        output = shared.outputs[id, index]
        assert output.finish == "stop"
        jsonschema.validate(json.loads(output.text), SCHEMA)
        assert "".join(entry.piece.decode() for entry in output.logprobs) == output.text
    assert shared.outputs[free, 0].tokens == expected


def test_grammar_that_is_cut_ends_with_length(shared: MlxDriver) -> None:
    """A text that `max_tokens` cuts says so."""
    output = shared.generate(PROMPTS[0], grammar=Grammar("regex", "[a-z]{200}"), max_tokens=3)
    assert (output.finish, len(output.tokens)) == ("length", 3)


@pytest.mark.parametrize("kind", ["json_schema", "regex", "lark", "gbnf"])
def test_grammar_that_cannot_be_compiled_is_refused(shared: MlxDriver, kind: Any) -> None:
    """The client gets the reason, and the engine never sees the request."""
    with pytest.raises(RequestError) as caught:
        shared.submit(PROMPTS[0], grammar=Grammar(kind, "((("))
    assert caught.value.kind == "invalid_value"


class Stuck:
    """A grammar that needs too much after so many tokens."""

    finished = False

    def __init__(self, tokens: int) -> None:
        self._left = tokens

    def matcher(self) -> Stuck:
        return Stuck(self._left)

    def mask(self) -> bytearray:
        if not self._left:
            raise RequestError("invalid_value", "it needs too much", "grammar")
        return bytearray(b"\xff" * (49152 // 8))

    def consume(self, token: int) -> bool:
        self._left -= 1
        return True


def test_grammar_that_leads_nowhere_fails_its_request_alone(shared: MlxDriver) -> None:
    """Nothing comes after the failure, and the stream beside it goes on."""
    expected = shared.generate(PROMPTS[1], max_tokens=12).tokens
    beside = shared.submit(PROMPTS[1], max_tokens=12)
    prompt = shared.backend.tokenize(_text(PROMPTS[0]), add_special=True, parse_special=True)
    request = Generate(9999, "stuck", TextPrompt(PROMPTS[0]), GREEDY, n=2, max_tokens=20)
    shared.backend.generate(request, prompt, Stuck(3))
    for index in range(2):
        shared.outputs[9999, index] = Output()
    shared.run()
    assert shared.failed[9999].message == "it needs too much"
    assert {len(shared.outputs[9999, index].tokens) for index in range(2)} <= {2, 3}
    assert 9999 not in shared.done
    assert shared.outputs[beside, 0].tokens == expected


def test_required_call_is_a_valid_one(shared: MlxDriver) -> None:
    """Random weights, and still: a call of the tool, with arguments that its schema allows."""
    tool = Tool("paint", "Paints.", json.dumps(SCHEMA).encode())
    prompt = ChatPrompt(
        [ChatMessage("user", "Paint it.")], tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    output = shared.generate(prompt, sampling=WARM, max_tokens=200)
    assert output.finish == "tool_calls"
    assert output.text.strip() == ""
    assert [call.name for call in output.tool_calls if call.name] == ["paint"]
    jsonschema.validate(json.loads("".join(call.arguments for call in output.tool_calls)), SCHEMA)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("mirostat", {"sampling": Sampling(mirostat=2)}),
        ("dry_multiplier", {"sampling": Sampling(dry_multiplier=0.8)}),
        ("typical_p", {"sampling": Sampling(typical_p=0.9)}),
        ("adapters", {"adapters": [AdapterScale("a")]}),
        ("speculative", {"speculative": "draft"}),
    ],
)
def test_what_mlx_does_not_have_is_refused_by_name(shared: MlxDriver, param: str, fields: dict[str, Any]) -> None:
    """Only where a client asks for it: the defaults pass."""
    with pytest.raises(RequestError) as caught:
        shared.submit(PROMPTS[0], **fields)
    assert (caught.value.kind, caught.value.param) == ("unsupported_operation", param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("invalid_value", []),
        ("invalid_value", [49152]),
        ("context_length_exceeded", [5] * 4096),
    ],
)
def test_prompt_that_cannot_be_served_is_refused(shared: MlxDriver, kind: str, prompt: list[int]) -> None:
    """Empty, of unknown tokens, longer than the context."""
    with pytest.raises(RequestError) as caught:
        shared.submit(prompt, sampling=GREEDY)
    assert caught.value.kind == kind


def test_capabilities_are_told() -> None:
    """What the model can do is in its facts; threads cannot be set, and it does not say that they can."""
    with mlx_driver(tiny_folder(), n_ctx=0, parallel=3) as driver:
        info = driver.info
        assert (info.architecture, info.quantization, info.vocabulary) == ("llama", "float32", 49152)
        assert (info.n_ctx, info.context_length, info.slots) == (8192, 8192, 3)
        assert set(info.capabilities) == {"chat", "tools", "completions", "tokenize", "structured_output"}
        assert info.memory.weights_bytes == 4 * info.parameters
        assert info.memory.kv_bytes == 2 * 2 * 32 * 4 * 8192
        assert info.chat_template_sha256
        assert {"import", "weights", "warmup"} <= set(driver.stages)
        assert not isinstance(driver.backend, SharesCores)
        with pytest.raises(RequestError, match="fill in the middle"):
            driver.backend.tokenize(InfillPrompt("a", "b"), add_special=True, parse_special=True)


def _text(text: str) -> TextPrompt:
    return TextPrompt(text)
