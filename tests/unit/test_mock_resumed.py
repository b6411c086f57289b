"""The mock goes on with what another worker began: no token lost, none doubled, whatever it was cut in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mock_driver import Mock, numbers, reply_of
from tests.support.resuming import got, sent_of
from tests.support.worker_client import Reply, text_request

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.prompts import check_request
from llmvisor_runtimes.protocol import (
    ChatMessage,
    ChatPrompt,
    Delta,
    Generate,
    Resumed,
    Sampling,
    Tool,
)

WEATHER = Tool("weather", None, b'{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}')
CALLING = ChatPrompt([ChatMessage("user", "weather?")], tools=[WEATHER], tool_choice="required")


def assert_resumes(request: Generate, cut: int, **options: Any) -> Reply:
    """A reply cut after so many deltas, and the rest of it from a fresh mock, are the whole; gives the rest."""
    whole = reply_of(request, **options)
    before = whole.deltas[:cut]
    rest = reply_of(msgspec.structs.replace(request, resumed=sent_of(before, request.n)), **options)
    assert rest.failed is None
    for index in range(request.n):
        assert got([*before, *rest.deltas], index) == got(whole.deltas, index)
    assert rest.done is not None
    assert whole.done is not None
    assert (rest.done.prompt_tokens, rest.done.completion_tokens) == (
        whole.done.prompt_tokens,
        whole.done.completion_tokens,
    )
    return rest


REQUESTS = {
    "plain": text_request(1, "hello", max_tokens=12),
    "by default": text_request(1, "hello"),
    "choices": text_request(1, "hello", max_tokens=5, n=3),
    "seeded": text_request(1, "hello", max_tokens=6, n=2, sampling=Sampling(temperature=1, seed=7)),
    "scored": text_request(1, "hello", max_tokens=6, logprobs=3),
    "echoed": text_request(1, "café", max_tokens=4, n=2, echo=True, logprobs=1),
    "echo alone": text_request(1, "café", max_tokens=0, n=2, echo=True),
    "stopped": text_request(1, "hello", max_tokens=40, stop=["9 ", "12"]),
    "stop held back": text_request(1, "hello", max_tokens=12, stop=["1" * 9, "nothing"]),
    "script": text_request(1, "[[reply:a text, é, that is set]]", max_tokens=100),
    "script cut off": text_request(1, "[[reply:a text, é, that is set]]", max_tokens=9),
    "call": Generate(1, "r", CALLING, Sampling(), n=2, max_tokens=200),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_reply_goes_on_after_every_delta(request_: Generate) -> None:
    """Whatever it was cut in: text, tokens, log-probabilities, calls and usage are those of a run without a cut."""
    deltas = len(reply_of(request_).deltas)
    for cut in range(deltas):
        assert_resumes(request_, cut)


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.sampled_from([[], ["7"], ["3 "]]))
def test_reply_goes_on_after_any_cut(cut: int, tokens_per_step: int, n: int, echo: bool, stop: list[str]) -> None:
    """The same for any number of choices and tokens in a step."""
    request = text_request(1, "any", max_tokens=20, n=n, echo=echo, stop=stop)
    assert_resumes(request, cut, tokens_per_step=tokens_per_step)


def test_reply_goes_on_again_and_again() -> None:
    """A worker for each three tokens: the numbers have no gap and no repeat."""
    request = text_request(1, "hello", max_tokens=20)
    deltas: list[Delta] = []
    for _ in range(7):
        mock = Mock()
        mock.take(msgspec.structs.replace(request, resumed=sent_of(deltas, 1)))
        mock.step(3)
        deltas += mock.replies[1].deltas
    assert numbers(token for delta in deltas for token in delta.tokens) == list(range(20))
    assert deltas[-1].finish == "length"


def test_echo_that_was_cut_in_the_middle_goes_on_there() -> None:
    """A long echo goes in several frames, the text with the last: what is left of it comes, text and all."""
    rest = reply_of(text_request(1, "hello", max_tokens=1, echo=True, logprobs=0, resumed=[Resumed([*b"he"])]))
    assert rest.deltas[0].text == "hello"
    assert rest.deltas[0].tokens == [*b"llo"]
    assert [entry.token for entry in rest.deltas[0].logprobs] == [*b"llo"]
    assert numbers(rest.deltas[1].tokens) == [0]


def test_calls_keep_the_ids_that_have_been_sent() -> None:
    """A call that has begun goes on under its id; the client has no other."""
    request = REQUESTS["call"]
    whole = reply_of(request)
    begun = next(cut for cut, delta in enumerate(whole.deltas, 1) if delta.index == 0 and delta.tool_calls)
    rest = assert_resumes(request, begun)
    assert all(call.id is None for delta in rest.deltas if delta.index == 0 for call in delta.tool_calls)


def test_choices_that_have_ended_take_no_slot() -> None:
    """They are counted, and nothing more comes of them; where all have ended the request has."""
    request = text_request(1, "hello", max_tokens=3, n=2)
    ended = sent_of(reply_of(request).deltas, 2)
    mock = Mock(parallel=1)
    mock.take(msgspec.structs.replace(request, resumed=[ended[0], Resumed()]))
    mock.step()
    assert [delta.index for delta in mock.replies[1].deltas] == [1]
    rest = reply_of(msgspec.structs.replace(request, resumed=ended))
    assert (rest.deltas, rest.done and rest.done.completion_tokens) == ([], 6)


@pytest.mark.parametrize(
    "resumed",
    [[Resumed([1, 2])], [Resumed([-5])], [Resumed([2**40])], [Resumed([*b"other"])], [Resumed(), Resumed()]],
    ids=["other tokens", "no token", "beyond the vocabulary", "another echo", "too many choices"],
)
def test_what_no_worker_sent_is_refused(resumed: list[Resumed]) -> None:
    """That request fails, and the mock lives on."""
    mock = Mock()
    for echo in (False, True):
        request = text_request(1, "hello", echo=echo, resumed=resumed)
        with pytest.raises(RequestError, match="cannot go on"):
            _begin(mock, request)
    assert mock.run(text_request(2, "hello", max_tokens=1)).done is not None


def _begin(mock: Mock, request: Generate) -> None:
    """As the host does."""
    check_request(request)
    mock.take(request)


def test_choice_that_ended_without_an_end_is_refused() -> None:
    """All its tokens have been sent, but not how it ended: no worker sends the one without the other."""
    request = text_request(1, "hello", max_tokens=2)
    tokens = reply_of(request).tokens()
    with pytest.raises(RequestError, match="has ended with token 2"):
        Mock().take(msgspec.structs.replace(request, resumed=[Resumed(tokens)]))
