"""The MLX engine goes on with what another worker began: wherever it was cut, the rest is that of one run.

Prompt and tokens sent are computed in one go, so log-probabilities are compared within float noise; on this model and
with these seeds it never decides between two tokens.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import msgspec
import pytest
from tests.support.mlx_driver import GREEDY, MlxDriver, mlx_driver
from tests.support.mlx_models import tiny_folder
from tests.support.resuming import assert_same, call_ids, got, sent_of

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Delta, Grammar, Resumed, Sampling, Tool

NOISE = 5e-3

PROMPT = "Once upon a time there was a model that"
WARM = Sampling(temperature=1.0, seed=7, top_k=0, top_p=1.0)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
CALLING = ChatPrompt(
    [ChatMessage("user", "Paint it.")],
    tools=[Tool("paint", "Paints.", json.dumps(SCHEMA).encode())],
    tool_choice="required",
    parallel_tool_calls=False,
)
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 10},
    "seeded": {"sampling": WARM, "max_tokens": 10},
    "penalties": {"sampling": msgspec.structs.replace(WARM, repeat_penalty=1.4, presence_penalty=0.5), "max_tokens": 8},
    "XTC": {"sampling": msgspec.structs.replace(WARM, xtc_probability=0.5, xtc_threshold=0.01), "max_tokens": 8},
    "choices": {"sampling": WARM, "n": 3, "max_tokens": 4},
    "scored echo": {"sampling": WARM, "n": 2, "max_tokens": 4, "echo": True, "logprobs": 1},
    "grammar": {"sampling": WARM, "grammar": Grammar("json_schema", json.dumps(SCHEMA)), "max_tokens": 60},
    "call": {"prompt": CALLING, "sampling": WARM, "max_tokens": 200},
}


@pytest.fixture(scope="module")
def driver() -> Generator[MlxDriver]:
    with mlx_driver(tiny_folder(), n_ctx=2048, parallel=2) as driver:
        yield driver


def run(
    driver: MlxDriver, wanted: dict[str, Any], resumed: list[Resumed] | None = None, **further: Any
) -> tuple[list[Delta], int]:
    """All deltas of a request, and its tokens as `Done` counts them. Nothing comes from the cache, or stays there."""
    fields: dict[str, Any] = {"prompt": PROMPT, "cache_prompt": False, **wanted, "resumed": resumed or [], **further}
    id = driver.submit(**fields)
    driver.run()
    assert id not in driver.failed, driver.failed[id].message
    return driver.deltas[id], driver.done[id].completion_tokens


def assert_goes_on(driver: MlxDriver, wanted: dict[str, Any], cuts: int = 100) -> None:
    """After at most so many different cuts."""
    choices = wanted.get("n", 1)
    whole, tokens = run(driver, wanted)
    for cut in range(0, len(whole), 1 + len(whole) // cuts):
        before = whole[:cut]
        rest, counted = run(driver, wanted, sent_of(before, choices))
        assert counted == tokens
        assert not {*call_ids(before)} & {*call_ids(rest)}
        for index in range(choices):
            assert_same(got(before + rest, index), got(whole, index), NOISE)


@pytest.mark.parametrize("name", REQUESTS)
def test_text_goes_on_after_every_cut(driver: MlxDriver, name: str) -> None:
    """After a dozen of its deltas: text, tokens, scores, calls, ends and usage are those of one run."""
    assert_goes_on(driver, REQUESTS[name], cuts=12)


def test_log_probabilities_held_back_at_the_cut_come(driver: MlxDriver) -> None:
    """What a stop string might cut off was not sent: its tokens are scored again, and nothing is lost."""
    text = got(run(driver, {"max_tokens": 10})[0]).text
    held = text[2:-2] + "\0"
    assert_goes_on(driver, {"max_tokens": 12, "stop": [held], "logprobs": 2, "sampling": GREEDY})


def test_kept_prompts_are_used(driver: MlxDriver) -> None:
    """A worker that knows the prompt computes only what came after it."""
    whole, tokens = run(driver, {"max_tokens": 6}, cache_prompt=True)
    id = driver.submit(PROMPT, max_tokens=6, resumed=sent_of(whole[:3]))
    driver.run()
    assert driver.done[id].completion_tokens == tokens
    assert driver.done[id].cached_tokens == driver.done[id].prompt_tokens - 1


@pytest.mark.parametrize(
    ("resumed", "fields"),
    [
        ([Resumed([10**9])], {}),
        ([Resumed([-1])], {}),
        ([Resumed([5, 5])], {"echo": True}),
        ([Resumed([400])], {"grammar": Grammar("json_schema", json.dumps(SCHEMA))}),
    ],
    ids=["beyond the vocabulary", "no token", "another echo", "against the grammar"],
)
def test_what_no_worker_sent_is_refused(driver: MlxDriver, resumed: list[Resumed], fields: dict[str, Any]) -> None:
    """That request fails, and the engine lives on."""
    with pytest.raises(RequestError):
        driver.submit(PROMPT, resumed=resumed, **fields)
    assert driver.generate(PROMPT, max_tokens=2).finish == "length"


def test_choices_that_have_ended_are_counted_and_gone(driver: MlxDriver) -> None:
    """Of those that have ended nothing comes; where all have, the request has."""
    whole, tokens = run(driver, REQUESTS["choices"])
    sent = sent_of(whole, 3)
    rest, counted = run(driver, REQUESTS["choices"], [sent[0], Resumed(sent[1].tokens[:2]), sent[2]])
    assert {delta.index for delta in rest} == {1}
    assert counted == tokens
    assert run(driver, REQUESTS["choices"], sent) == ([], tokens)


def test_text_that_has_no_room_here_ends_with_length(driver: MlxDriver) -> None:
    """The model was loaded again with a smaller context: what was written stays, and it ends as at any full context."""
    whole, _ = run(driver, {"max_tokens": 40})
    with mlx_driver(tiny_folder(), n_ctx=32) as small:
        rest, counted = run(small, {"max_tokens": 40}, sent_of(whole[:35]))
    assert [(delta.tokens, delta.finish) for delta in rest] == [([], "length")]
    assert counted == 35
