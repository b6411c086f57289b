"""One choice's tokens become deltas: text, marks, log-probabilities, calls, and the reason of its end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.support.letters import BOS, END, MARK, Letters

from llmvisor_runtimes.backend import RequestError
from llmvisor_runtimes.choice import ChoiceText, Usage, check_prompt
from llmvisor_runtimes.output import OutputParser
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, Delta, Generate, Sampling, TokenLogprob, Tool
from llmvisor_runtimes.toolcalls import make_parser

CALL = '<tool_call>\n{"name": "paint", "arguments": {"color": "red"}}\n</tool_call>'


def make_choice(
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    parser: OutputParser | None = None,
    marks: frozenset[int] = frozenset(),
    n_ctx: int = 1000,
) -> ChoiceText:
    prompt = [BOS, ord("h"), ord("i")]
    generate = Generate(5, "r", ChatPrompt([]), Sampling(), max_tokens=max_tokens, stop=list(stop), echo=True)
    return ChoiceText(generate, prompt, 0, n_ctx=n_ctx, vocabulary=Letters(), usage=Usage(), parser=parser, marks=marks)


def write(choice: ChoiceText, text: str) -> list[Delta]:
    """Take the characters as tokens until the choice ends, each with a log-probability."""
    deltas: list[Delta] = []
    for character in text:
        token = ord(character)
        deltas.append(choice.take(token, TokenLogprob(token, character.encode(), -1.0, [])))
        if choice.finish is not None:
            break
    return deltas


def joined(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_end_token_ends_without_a_text() -> None:
    """The last delta has the token, no text and no log-probability."""
    choice = make_choice()
    write(choice, "ab")
    delta = choice.take(END, TokenLogprob(END, b"</s>", -0.1, []))
    assert (delta.text, delta.tokens, delta.finish, delta.logprobs) == ("", [END], "stop", [])


@pytest.mark.parametrize(("max_tokens", "n_ctx"), [(2, 1000), (None, 5)])
def test_length_ends_what_max_tokens_or_the_context_cut(max_tokens: int | None, n_ctx: int) -> None:
    """A choice of two tokens ends with the second one."""
    choice = make_choice(max_tokens=max_tokens, n_ctx=n_ctx)
    assert choice.tokens_left == 2
    assert joined(write(choice, "abc")) == "ab"
    assert choice.finish == "length"


def test_complete_grammar_ends_with_stop() -> None:
    """Where nothing but the end may follow nobody waits for it, not even at the last token allowed."""
    choice = make_choice(max_tokens=1, stop=["}x"])
    delta = choice.take(ord("}"), None, complete=True)
    assert (delta.text, delta.finish) == ("}", "stop")


def test_stop_string_takes_its_logprobs_with_it() -> None:
    """What a stop string cut off is in neither the text nor the log-probabilities."""
    choice = make_choice(stop=["XY"])
    deltas = write(choice, "abXcXYd")
    assert joined(deltas) == "abXc"
    assert [entry.piece for delta in deltas for entry in delta.logprobs] == [b"a", b"b", b"X", b"c"]
    assert deltas[-1].finish == "stop"


def test_echo_leaves_out_what_the_vocabulary_put_in_front() -> None:
    """The tokens are all there, the text is the client's."""
    delta = make_choice(max_tokens=0).echo([])
    assert (delta.text, delta.tokens, delta.finish) == ("hi", [BOS, ord("h"), ord("i")], "length")


def test_marks_are_written_only_where_somebody_reads_them() -> None:
    """Control tokens are silent, but for those that a parser or a grammar has to see."""
    assert make_choice().take(MARK, None).text == ""
    assert make_choice(marks=frozenset({MARK})).take(MARK, None).text == "<mark>"


def test_calls_are_taken_out_of_the_text() -> None:
    """A choice that calls a tool and then stops ends with `tool_calls`."""
    prompt = ChatPrompt([ChatMessage("user", "paint")], tools=[Tool("paint")])
    choice = make_choice(parser=make_parser(prompt, "hermes", ""))
    deltas = [*write(choice, CALL), choice.take(END, None)]
    assert joined(deltas).strip() == ""
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.name for call in calls if call.name] == ["paint"]
    assert deltas[-1].finish == "tool_calls"


def test_call_that_is_cut_ends_with_length() -> None:
    """`length` stays `length`: the client must know that the arguments may be cut."""
    prompt = ChatPrompt([ChatMessage("user", "paint")], tools=[Tool("paint")])
    choice = make_choice(parser=make_parser(prompt, "hermes", ""), max_tokens=len(CALL) - 20)
    write(choice, CALL)
    assert choice.finish == "length"


@pytest.mark.parametrize(
    ("prompt", "kind"), [([], "invalid_value"), ([-1], "invalid_value"), ([9] * 10, "context_length_exceeded")]
)
def test_prompt_that_can_never_be_served_is_refused(prompt: list[int], kind: str) -> None:
    """Empty, unknown, or as long as the context."""
    with pytest.raises(RequestError) as caught:
        check_prompt(prompt, n_ctx=10, vocabulary=Letters())
    assert (caught.value.kind, caught.value.param) == (kind, "prompt")
