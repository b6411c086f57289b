"""The bounds of a request's fields: each one at its bound, and just past it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmvisor import limits
from llmvisor.errors import InvalidRequest
from llmvisor.http.decode import BodyDecoder
from llmvisor.http.openai.chat import ChatRequest
from llmvisor.http.openai.completions import CompletionRequest
from llmvisor.http.openai.request import folded_seed
from llmvisor.services.service import Generation
from llmvisor_runtimes.protocol import AdapterScale, InfillPrompt, TextPrompt, TokenPrompt

CHAT = BodyDecoder(ChatRequest)
COMPLETION = BodyDecoder(CompletionRequest)
HI: dict[str, Any] = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> Generation:
    return CHAT.decode(msgspec.json.encode({"messages": [HI], **fields})).generation("req")


def completion(**fields: Any) -> list[Generation]:
    return COMPLETION.decode(msgspec.json.encode({"prompt": "hi", **fields})).generations("req")


TINY = 1e-6
MANY_ADAPTERS = {str(number): 1 for number in range(limits.adapters_max + 1)}
WITHIN_AND_PAST: list[tuple[str, list[Any], list[Any]]] = [
    ("temperature", [0, 2, 0.7], [-TINY, 2 + TINY, "1", True, [1]]),
    ("top_p", [0, 1], [-TINY, 1 + TINY]),
    ("top_k", [0, limits.tokens_max], [-1, limits.tokens_max + 1, 1.5]),
    ("min_p", [0, 1], [-TINY, 1 + TINY]),
    ("typical_p", [0, 1], [-TINY, 1 + TINY]),
    ("repeat_penalty", [TINY, 10], [0, 10 + 1e-4]),
    ("repeat_last_n", [-1, 0, limits.tokens_max], [-2, limits.tokens_max + 1]),
    ("presence_penalty", [-2, 2], [-2 - TINY, 2 + TINY]),
    ("frequency_penalty", [-2, 2], [-2 - TINY, 2 + TINY]),
    ("mirostat", [0, 2], [-1, 3]),
    ("mirostat_tau", [0, 100], [-TINY, 100.01]),
    ("mirostat_eta", [0, 1], [-TINY, 1 + TINY]),
    ("dry_multiplier", [0, 100], [-TINY, 100.01]),
    ("dry_base", [1, 100], [1 - TINY, 100.01]),
    ("dry_allowed_length", [0], [-1]),
    ("dry_penalty_last_n", [-1, 0], [-2]),
    ("dry_sequence_breakers", [[], ["x" * 64] * 16], [["x"] * 17, ["x" * 65], [""], "x", [1]]),
    ("xtc_probability", [0, 1], [-TINY, 1 + TINY]),
    ("xtc_threshold", [0, 1], [-TINY, 1 + TINY]),
    ("seed", [0, -1, 2**63, -(2**63), 10**30], ["1", 1.5]),
    ("logit_bias", [{}, {"0": -100, "5": 100}], [{"1": 100.1}, {"1": -100.1}, {"x": 1}, {"-1": 1}, {"1.0": 1}, [1]]),
    ("n", [1, limits.choices_max], [0, limits.choices_max + 1, -1]),
    ("max_tokens", [1, limits.tokens_max], [-1, limits.tokens_max + 1]),
    ("stop", ["x", [], ["x"] * 16, "x" * 1024], [["x"] * 17, "", [""], "x" * 1025, "é" * 513, 5, [5]]),
    ("model", ["x" * 256], ["x" * 257, 5]),
    ("stream", [True, False], ["yes", 1]),
    ("keep_alive", [0, -1, "5m", 300], ["soon", [], 10**12]),
    ("ignore_eos", [True], [1]),
    ("cache_prompt", [False], ["no"]),
    ("speculative", ["off", "lookup", "draft"], ["ngram", 1, True]),
    (
        "adapters",
        [{}, {"a": -100, "b": 100}, {"x" * limits.adapter_name_chars_max: 1}],
        [{"a": 100.1}, {"a": "1"}, ["a"], {"": 1}, {"x" * (limits.adapter_name_chars_max + 1): 1}, MANY_ADAPTERS],
    ),
    (
        "lora",
        [[], [{"id": 0, "scale": 0.5}, {"name": "a"}], [{"id": "a"}], [{"id": limits.adapters_max - 1}]],
        [[{"id": -1}], [{"id": limits.adapters_max}], [{"scale": -100.1}], {}, [{"id": 0}] * (limits.adapters_max + 1)],
    ),
    ("stream_options", [{}, {"include_usage": None}], [{"include_usage": 1}, 5]),
]
WITHIN = [(name, value) for name, within, _ in WITHIN_AND_PAST for value in [*within, None]]
PAST = [(name, value) for name, _, past in WITHIN_AND_PAST for value in past]


@pytest.mark.parametrize(("name", "value"), WITHIN, ids=lambda value: repr(value)[:40])
def test_field_within_its_bounds_is_taken(name: str, value: Any) -> None:
    """At the bound, and null for absent, on both endpoints."""
    assert chat(**{name: value}).request_id == "req"
    assert len(completion(**{name: value})) == 1


@pytest.mark.parametrize(("name", "value"), PAST, ids=lambda value: repr(value)[:40])
def test_field_past_its_bounds_is_refused_by_name(name: str, value: Any) -> None:
    """Just past the bound, or of the wrong type: the error's param begins with the field's name."""
    for ask in (chat, completion):
        with pytest.raises(InvalidRequest) as error:
            ask(**{name: value})
        assert error.value.param is not None
        assert error.value.param.split("[")[0].split(".")[0] == name
        assert error.value.status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [HI] * (limits.messages_max + 1)}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [HI, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "dance"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 257}]},
            "messages[0].content",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"reasoning_effort": "x" * 33}, "reasoning_effort"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * limits.template_kwargs_bytes_max}}, "chat_template_kwargs"),
        ({"logit_bias": {str(key): 0 for key in range(limits.logit_bias_entries_max + 1)}}, "logit_bias"),
        ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_chat_refuses_what_is_no_conversation(fields: dict[str, Any], param: str) -> None:
    """The path leads to the very place."""
    with pytest.raises(InvalidRequest) as error:
        chat(**fields)
    assert error.value.param == param


def test_chat_takes_as_much_as_the_bounds_allow() -> None:
    """The longest conversation, the most biases, the most alternatives."""
    generation = chat(
        messages=[HI] * limits.messages_max,
        logit_bias={str(key): 0 for key in range(limits.logit_bias_entries_max)},
        logprobs=True,
        top_logprobs=limits.top_logprobs_max,
    )
    assert generation.logprobs == 20


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    """The newer name counts where both are set."""
    assert chat(max_tokens=5, max_completion_tokens=9).max_tokens == 9
    assert chat(max_tokens=5).max_tokens == 5


def test_logprobs_without_alternatives_are_zero_of_them() -> None:
    """`logprobs: true` alone asks for the chosen tokens' own."""
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=False).logprobs is None


def test_seeds_of_any_size_fold_into_the_samplers_range() -> None:
    """Small seeds stay as they are, others keep repeating the same, -1 is random, and choice i can add i."""
    assert [folded_seed(seed) for seed in (None, -1, 0, 42)] == [None, None, 0, 42]
    for seed in (2**32 - 1, 2**63, -(2**63), -2, 10**40):
        folded = folded_seed(seed)
        assert folded is not None
        assert folded == folded_seed(seed)
        assert 0 <= folded + limits.choices_max < 2**32 - 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [TextPrompt("a")]),
        ("", [TextPrompt("")]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([1, 2, 3], [TokenPrompt([1, 2, 3])]),
        ([[1], [2, 3]], [TokenPrompt([1]), TokenPrompt([2, 3])]),
        (["x"] * limits.prompts_max, [TextPrompt("x")] * limits.prompts_max),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_completion_reads_every_form_of_prompt(prompt: Any, expected: list[Any]) -> None:
    """Text, texts, token ids, lists of token ids."""
    assert [generation.prompt for generation in completion(prompt=prompt)] == expected


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        [],
        [[]],
        [1, "a"],
        [[1], 2],
        [["a"]],
        [-1],
        [[2**31]],
        [1.5],
        [True],
        ["x"] * (limits.prompts_max + 1),
        [[1]] * (limits.prompts_max + 1),
        {},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_completion_refuses_what_is_no_prompt(prompt: Any) -> None:
    """Mixtures, empty lists, ids that cannot be, too many."""
    with pytest.raises(InvalidRequest) as error:
        completion(prompt=prompt)
    assert error.value.param is not None
    assert error.value.param.startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"suffix": "x", "prompt": ["a"]}, "suffix", "invalid_value"),
        ({"suffix": "x", "prompt": [1, 2]}, "suffix", "invalid_value"),
        ({"suffix": "x", "echo": True}, "suffix", "invalid_value"),
        ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
        ({"best_of": 17}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"adapters": {"a": 1}, "lora": []}, "lora", "invalid_value"),
        ({"lora": [{"scale": 1}]}, "lora[0].name", "invalid_value"),
    ],
    ids=repr,
)
def test_completion_refuses_what_does_not_go_together(fields: dict[str, Any], param: str, code: str) -> None:
    """Fields that contradict each other, or that nothing here can do."""
    with pytest.raises(InvalidRequest) as error:
        completion(**fields)
    assert (error.value.param, error.value.code) == (param, code)


def test_completion_defaults_are_openais() -> None:
    """16 tokens unless told otherwise; none at all only to look at an echo."""
    assert completion()[0].max_tokens == 16
    assert completion(max_tokens=0, echo=True)[0].max_tokens == 0
    assert completion(suffix="")[0].prompt == TextPrompt("hi")


def test_completion_with_a_suffix_is_filled_in() -> None:
    """What comes before and after the gap goes to the worker as two texts."""
    assert completion(prompt="def f(", suffix="return 1")[0].prompt == InfillPrompt("def f(", "return 1")


def test_adapters_are_named_in_both_ways() -> None:
    """By name and scale, or as llama.cpp's server does; an empty list turns them all off."""

    def complete(**fields: Any) -> Generation:
        return completion(**fields)[0]

    for ask in (chat, complete):
        assert ask().adapters is None
        assert ask(adapters={}).adapters == []
        assert ask(adapters={"a": 0.5, "b": 2}).adapters == [AdapterScale("a", 0.5), AdapterScale("b", 2.0)]
        lora = [{"id": 1, "scale": 0.25}, {"name": "a"}, {"id": "b"}]
        assert ask(lora=lora).adapters == [AdapterScale("1", 0.25), AdapterScale("a", 1.0), AdapterScale("b", 1.0)]
        assert ask(speculative="lookup").speculative == "lookup"


def test_completion_best_of_generates_more_and_weighs_them() -> None:
    """The extra choices are generated, with log-probabilities to choose by."""
    (generation,) = completion(n=1, best_of=3)
    assert (generation.n, generation.logprobs) == (3, 0)
    assert completion(n=2, best_of=2)[0].logprobs is None
