"""The llama.cpp engine goes on with what another worker began: wherever it was cut, the rest is that of one run.

The rest of a text is computed from another batch than that of the run without a cut: prompt and tokens sent in one go.
Its logits differ by float noise, so log-probabilities are compared within a bound, and tokens are the same where noise
does not decide. On the tiny model with the seeds chosen here it never does; on the starter model it is told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.llama_driver import LlamaDriver, assert_same_up_to_noise, llama_driver
from tests.support.models import starter_model_path
from tests.support.resuming import assert_same, call_ids, got, sent_of
from tests.support.tiny_gguf import BOS, EOS, VOCABULARY, byte_tokens, write_tiny_gguf

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Delta, Grammar, Resumed, Sampling, Tool

NOISE = 0.02
STARTER_NOISE = 0.5
"""As in `test_llamacpp_engine`: its matrices are multiplied in 8 bits, by other kernels for other batch sizes."""
PROMPT = [BOS, *byte_tokens("write:something")]
PAIR = '{"type":"object","properties":{"a":{"type":"integer","minimum":0,"maximum":99},"b":{"enum":["x","yy"]}},"required":["a","b"],"additionalProperties":false}'  # noqa: E501
CITY = b'{"type":"object","properties":{"city":{"type":"string","pattern":"^[A-Z][a-z]{2,8}$"}},"required":["city"]}'
LETTERS = {*byte_tokens("abcdefgh")}
WRITES = {token: -1e9 for token in range(VOCABULARY) if token not in LETTERS}
"""Few letters, so that stop strings of these come about."""
GREEDY = Sampling(temperature=0, logit_bias=WRITES)
SEEDED = Sampling(temperature=1, seed=7, top_k=0, top_p=1)
WORDS = Sampling(temperature=1, seed=3, top_k=0, top_p=1, logit_bias=WRITES)
CALLING = ChatPrompt(
    [ChatMessage("user", "weather?")],
    tools=[Tool("weather", None, CITY)],
    tool_choice="required",
    parallel_tool_calls=False,
)

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": GREEDY},
    "seeded": {"sampling": SEEDED},
    "truncated": {"sampling": Sampling(temperature=0.9, seed=11, top_k=50, top_p=0.9, min_p=0.01, typical_p=0.95)},
    "penalties": {"sampling": Sampling(temperature=0, repeat_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.4)},
    "DRY": {"sampling": Sampling(temperature=0.8, seed=5, dry_multiplier=0.8, repeat_penalty=1.1, logit_bias=WRITES)},
    "mirostat 1": {"sampling": Sampling(temperature=1, seed=5, mirostat=1)},
    "mirostat 2": {"sampling": Sampling(temperature=1, seed=5, mirostat=2, repeat_penalty=1.2)},
    "XTC": {"sampling": Sampling(temperature=1, seed=9, top_p=0.5, xtc_probability=0.5, xtc_threshold=0.05)},
    "choices": {"sampling": SEEDED, "n": 3, "max_tokens": 10},
    "log-probabilities": {"sampling": SEEDED, "logprobs": 3},
    "stop": {"sampling": WORDS, "stop": ["bdfbdx", "fbdcdcc"], "max_tokens": 80},
    "stop and log-probabilities": {
        "sampling": WORDS,
        "stop": ["accaf", "fcfcg!", "hhfdda", "cfcghhfddcce"],
        "logprobs": 2,
        "max_tokens": 60,
    },
    "echo": {"sampling": SEEDED, "echo": True, "n": 2, "max_tokens": 8},
    "scored echo": {"sampling": SEEDED, "echo": True, "logprobs": 1, "n": 2, "max_tokens": 8},
    "grammar": {"sampling": Sampling(temperature=0), "grammar": Grammar("json_schema", PAIR), "max_tokens": 60},
    "seeded grammar": {
        "sampling": Sampling(temperature=1, seed=21, top_k=0, top_p=1),
        "grammar": Grammar("regex", "[a-f]{3}-?(cat|dog|[0-9]{4})-[x-z]{2,9}"),
        "max_tokens": 60,
    },
    "mirostat and grammar": {
        "sampling": Sampling(temperature=1, seed=2, mirostat=2),
        "grammar": Grammar("regex", "[a-f]{3}-(cat|dog)-[x-z]{2,9}"),
        "max_tokens": 60,
    },
    "call": {"sampling": SEEDED, "conversation": CALLING, "n": 2, "max_tokens": 120},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


def begin(driver: LlamaDriver, wanted: dict[str, Any], resumed: list[Resumed] | None = None) -> int:
    if "conversation" in wanted:
        return driver.converse(**wanted, resumed=resumed)
    return driver.submit(PROMPT, **wanted, resumed=resumed)


def run(driver: LlamaDriver, wanted: dict[str, Any], resumed: list[Resumed] | None = None) -> tuple[list[Delta], int]:
    """All deltas of a request, and its tokens as `Done` counts them."""
    id = begin(driver, wanted, resumed)
    driver.run()
    assert id not in driver.failed, driver.failed[id].message
    return driver.deltas[id], driver.done[id].completion_tokens


@pytest.mark.parametrize("name", REQUESTS)
def test_text_goes_on_after_every_cut(tiny: Path, name: str) -> None:
    """In a fresh worker, after nearly each delta: text, tokens, calls, scores, ends and usage are those of one run."""
    wanted = REQUESTS[name]
    choices = wanted.get("n", 1)
    with llama_driver(tiny, parallel=2, n_ctx=2048) as driver:
        whole, tokens = run(driver, wanted)
    assert len(whole) >= 8
    for cut in range(0, len(whole), 1 + len(whole) // 60):
        before = whole[:cut]
        with llama_driver(tiny, parallel=2, n_ctx=2048) as driver:
            rest, counted = run(driver, wanted, sent_of(before, choices))
        assert counted == tokens
        for index in range(choices):
            assert_same(got(before + rest, index), got(whole, index), NOISE)


def test_worker_after_worker_goes_on(tiny: Path) -> None:
    """Killed five times in one text, also before its first token: it is that of one run, and so is its usage."""
    wanted = {"sampling": WORDS, "stop": ["fcfcg!"], "logprobs": 2, "max_tokens": 40}
    with llama_driver(tiny) as driver:
        whole, tokens = run(driver, wanted)
    deltas: list[Delta] = []
    for cut in (0, 1, 9, 10, 25):
        with llama_driver(tiny) as driver:
            id = begin(driver, wanted, sent_of(deltas))
            driver.run(lambda: len(deltas) + len(driver.deltas[id]) >= cut)  # noqa: B023 - called here
            deltas += driver.deltas[id]
    with llama_driver(tiny) as driver:
        rest, counted = run(driver, wanted, sent_of(deltas))
    assert counted == tokens
    assert_same(got(deltas + rest), got(whole), NOISE)


def test_echo_cut_between_two_frames_goes_on_there(tiny: Path) -> None:
    """A long echo goes in several frames, its text with the last: what is left of it comes, text and scores and all."""
    wanted: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 3}
    with llama_driver(tiny) as driver:
        whole, tokens = run(driver, wanted)
        cut = Delta(1, 0, "", whole[0].tokens[:5], None, whole[0].logprobs[:5])
        rest, counted = run(driver, wanted, sent_of([cut]))
    assert counted == tokens
    assert_same(got([cut, *rest]), got(whole), NOISE)


def test_calls_keep_the_ids_that_have_been_sent(tiny: Path) -> None:
    """A call that has begun goes on under its id, and what comes after it has one of its own."""
    with llama_driver(tiny, n_ctx=2048) as driver:
        whole, _ = run(driver, REQUESTS["call"])
        begun = next(place for place, delta in enumerate(whole, 1) if call_ids([delta]))
        rest, _ = run(driver, REQUESTS["call"], sent_of(whole[:begun], 2))
    assert [delta.index for delta in rest if call_ids([delta])] == [1 - whole[begun - 1].index]


def test_choices_that_have_ended_are_counted_and_gone(tiny: Path) -> None:
    """Of those that have ended nothing comes; where all have, the request has."""
    wanted = REQUESTS["choices"]
    with llama_driver(tiny) as driver:
        whole, tokens = run(driver, wanted)
        sent = sent_of(whole, 3)
        rest, counted = run(driver, wanted, [sent[0], Resumed(sent[1].tokens[:2]), sent[2]])
        assert {delta.index for delta in rest} == {1}
        assert counted == tokens
        assert run(driver, wanted, sent) == ([], tokens)


def test_text_that_has_no_room_here_ends_with_length(tiny: Path) -> None:
    """The model was loaded again with a smaller context: what was written stays, and it ends as at any full context."""
    wanted = {"sampling": GREEDY, "max_tokens": 300}
    with llama_driver(tiny) as driver:
        whole, _ = run(driver, wanted)
    with llama_driver(tiny, n_ctx=256) as small:
        rest, counted = run(small, wanted, sent_of(whole[:280]))
    assert [(delta.tokens, delta.finish) for delta in rest] == [([], "length")]
    assert counted == 280


def test_sequence_sent_back_while_it_catches_up_catches_up_again(tiny: Path) -> None:
    """Mirostat looks at the logits of each token again; another text drives it out of the cache in the middle."""
    wanted = {**REQUESTS["mirostat 2"], "max_tokens": 100, "ignore_eos": True}
    with llama_driver(tiny) as driver:
        whole, _ = run(driver, wanted)
        driver.submit([BOS, *byte_tokens("other")], max_tokens=20, sampling=GREEDY)
        id = begin(driver, wanted, sent_of(whole[:90]))
        (choice,) = driver.choices(id)
        driver.run(lambda: (choice.unrepeated or 0) > len(PROMPT))
        driver.send_back(choice)
        driver.run()
    assert_same(got(whole[:90] + driver.deltas[id]), got(whole), NOISE)


def test_guesses_go_on_too(tiny: Path) -> None:
    """Prompt lookup guesses from prompt and text alike; the text stays the same."""
    wanted = {"sampling": Sampling(temperature=0, logit_bias=WRITES), "max_tokens": 40, "speculative": "lookup"}
    with llama_driver(tiny) as driver:
        whole, tokens = run(driver, wanted)
    with llama_driver(tiny) as driver:
        rest, counted = run(driver, wanted, sent_of(whole[:17]))
    assert counted == tokens
    assert_same(got(whole[:17] + rest), got(whole), NOISE)


@pytest.mark.parametrize(
    ("resumed", "fields"),
    [
        ([Resumed([VOCABULARY])], {}),
        ([Resumed([-1])], {}),
        ([Resumed([5, 5])], {"echo": True}),
        ([Resumed(byte_tokens("nothing"))], {"grammar": Grammar("json_schema", PAIR)}),
        ([Resumed(byte_tokens("{"))], {"grammar": Grammar("regex", "[a-z]+")}),
        ([Resumed([EOS])], {}),
        ([Resumed(byte_tokens("a stop!"))], {"stop": ["stop"]}),
    ],
    ids=["beyond the vocabulary", "no token", "another echo", "no JSON", "no match", "the end", "after a stop"],
)
def test_what_no_worker_sent_is_refused(tiny: Path, resumed: list[Resumed], fields: dict[str, Any]) -> None:
    """That request fails, and the engine lives on."""
    with llama_driver(tiny) as driver:
        for sampling in (GREEDY, SEEDED):
            with pytest.raises(RequestError):
                driver.submit(PROMPT, resumed=resumed, sampling=sampling, **fields)
        assert driver.generate(PROMPT, max_tokens=2).finish == "length"


def test_grammar_that_refuses_while_catching_up_fails_its_request_alone(tiny: Path) -> None:
    """Where logits are looked at again the grammar is asked later: the stream beside it does not notice."""
    with llama_driver(tiny) as driver:
        beside = driver.submit(PROMPT, max_tokens=12)
        wrong = [Resumed(byte_tokens("abc-cat"))]
        id = driver.submit(PROMPT, resumed=wrong, sampling=Sampling(mirostat=2), grammar=Grammar("regex", "[a-c]{9}"))
        driver.run()
    assert "cannot go on" in driver.failed[id].message
    assert driver.outputs[beside, 0].finish == "length"


# ---------------------------------------------------------------------------------------------------- the starter model


@pytest.fixture(scope="module")
def starter() -> Iterator[LlamaDriver]:
    with llama_driver(starter_model_path(), n_ctx=2048, parallel=2, n_threads=1) as driver:
        yield driver


@pytest.mark.model
def test_starter_model_goes_on_after_a_cut(starter: LlamaDriver) -> None:
    """Greedy, prompt computed anew each time: the rest is that of one run, up to where noise decides."""
    conversation = ChatPrompt([ChatMessage("user", "Tell me about the sea.")])
    wanted: dict[str, Any] = {"conversation": conversation, "max_tokens": 24, "logprobs": 5, "cache_prompt": False}
    whole = starter.outputs[starter.converse(**wanted), 0]
    starter.run()
    for cut in (1, 5, 12, 20):
        id = starter.converse(**wanted, resumed=[Resumed(whole.tokens[:cut])])
        starter.run()
        rest = starter.outputs[id, 0]
        rest.tokens = whole.tokens[:cut] + rest.tokens
        rest.logprobs = whole.logprobs[: 24 - len(rest.logprobs)] + rest.logprobs
        assert_same_up_to_noise(rest, whole, epsilon=STARTER_NOISE)
        assert (rest.finish, starter.done[id].completion_tokens) == ("length", 24)
