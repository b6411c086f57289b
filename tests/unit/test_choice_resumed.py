"""A choice that another worker began goes on: what was held back, begun or counted there is so here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.letters import END, Letters
from tests.support.resuming import got, sent_of

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.choice import ChoiceText, Usage
from llmvisor_runtimes.prompts import check_request
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Delta, Generate, Resumed, Sampling, TokenLogprob, Tool
from llmvisor_runtimes.resumption import ids_of_calls, sent_before
from llmvisor_runtimes.toolcalls import make_parser

PROMPT = [1, ord("h"), ord("i")]
CALLS = (
    '<think>\nwhich?\n</think>\nI paint. <tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "paint", "arguments": {"color": "blue", "size": [1, 2]}}\n</tool_call>'
)
CONVERSATION = ChatPrompt([ChatMessage("user", "paint")], tools=[Tool("paint")])


def make(
    resumed: Sequence[Resumed] = (), *, stop: Sequence[str] = (), max_tokens: int | None = None, calls: bool = False
) -> tuple[ChoiceText, Usage]:
    """A choice that goes on after what has been sent of it; its log-probabilities are those of `scored`."""
    generate = Generate(
        5, "r", CONVERSATION, Sampling(), max_tokens=max_tokens, stop=[*stop], logprobs=0, resumed=[*resumed]
    )
    sent = sent_before(generate, 0)
    parser = make_parser(CONVERSATION, "hermes:think", "", ids_of_calls(sent)) if calls else None
    usage = Usage()
    choice = ChoiceText(generate, PROMPT, 0, n_ctx=1000, vocabulary=Letters(), usage=usage, parser=parser)
    choice.replay(sent)
    for place in range(len(choice.tokens) - choice.logprobs_held, len(choice.tokens)):
        choice.set_logprob(place, scored(choice.tokens[place]))
    return choice, usage


def scored(token: int) -> TokenLogprob:
    return TokenLogprob(token, chr(token).encode(), -token / 10, [])


def write(choice: ChoiceText, text: str) -> list[Delta]:
    """Take the characters as tokens until the choice ends; after the last of them comes the end."""
    deltas: list[Delta] = []
    for token in [*map(ord, text), END]:
        if choice.finish is not None:
            break
        deltas.append(choice.take(token, scored(token)))
    return deltas


def assert_goes_on(
    text: str, cut: int, *, stop: Sequence[str] = (), max_tokens: int = 500, calls: bool = False
) -> None:
    """Cut after any of its deltas, the rest is that of one run, and what is used is counted as there."""
    choice, used = make(stop=stop, max_tokens=max_tokens, calls=calls)
    whole = write(choice, text)
    before = whole[: cut % len(whole)]
    choice, usage = make(sent_of(before), stop=stop, max_tokens=max_tokens, calls=calls)
    rest = write(choice, text[len(before) :])
    assert got(before + rest) == got(whole)
    assert usage.completion_tokens == used.completion_tokens == len(whole)


@given(st.text("abcé€", max_size=40), st.integers(0, 100), st.lists(st.text("abcé", max_size=5), max_size=3))
def test_stop_strings_are_found_across_a_cut(text: str, cut: int, stop: list[str]) -> None:
    """Also in the middle of what may become one: text and log-probabilities are those of one run."""
    assert_goes_on(text, cut, stop=stop)


@given(st.integers(0, 500))
def test_calls_and_thoughts_go_on_across_a_cut(cut: int) -> None:
    """Thoughts, text, two calls: wherever they are cut they are those of one run."""
    assert_goes_on(CALLS, cut, calls=True)


@given(st.integers(0, 500), st.integers(1, 200))
def test_max_tokens_counts_what_has_been_sent(cut: int, max_tokens: int) -> None:
    """It ends where one run would have, with `length` where that did."""
    assert_goes_on(CALLS, cut, calls=True, max_tokens=max_tokens)


def test_calls_keep_their_ids_and_later_ones_get_new_ones() -> None:
    """The first call was sent with an id, the second had not begun."""
    choice, _ = make(calls=True)
    whole = write(choice, CALLS)
    first = next(place for place, delta in enumerate(whole, 1) if delta.tool_calls)
    sent = sent_of(whole[:first])
    assert len(sent[0].tool_call_ids) == 1
    choice, _ = make(sent, calls=True)
    ids = [call.id for delta in write(choice, CALLS[first:]) for call in delta.tool_calls if call.id]
    assert len(ids) == 1
    assert ids != sent[0].tool_call_ids
    assert ids[0].startswith("call_")


def test_choice_that_has_ended_counts_and_says_no_more() -> None:
    """Its tokens are in the usage of the whole."""
    choice, usage = make([Resumed([*b"abc"], "stop")])
    assert (choice.finish, usage.completion_tokens) == ("stop", 3)


def test_choice_beyond_its_context_gives_what_it_held_and_ends() -> None:
    """It was written where there was more room: there is no further token, but what was held back comes."""
    choice, usage = make([Resumed([*b"abXX"])], stop=["XXX"], max_tokens=4)
    assert not choice.wants_token
    delta = choice.nothing_wanted()
    assert (delta.text, delta.tokens, delta.finish, usage.completion_tokens) == ("XX", [], "length", 4)


@pytest.mark.parametrize(
    ("tokens", "stop"), [([97, END], []), ([*b"stop!"], ["stop"]), ([-3], [])], ids=["end", "stop", "no token"]
)
def test_what_ended_and_yet_goes_on_is_refused(tokens: list[int], stop: list[str]) -> None:
    """No worker sends the last token without saying that it is."""
    with pytest.raises(RequestError):
        make([Resumed(tokens)], stop=stop)


def test_backend_that_only_begins_is_not_asked_to_go_on() -> None:
    """It would write all of it again. Nothing sent is nothing to go on with."""
    begun = Generate(1, "r", CONVERSATION, Sampling(), resumed=[Resumed([1])])
    with pytest.raises(RequestError, match="only begins"):
        check_request(begun, resumes=False)
    check_request(Generate(1, "r", CONVERSATION, Sampling(), resumed=[Resumed()]), resumes=False)
    check_request(begun, resumes=True)
