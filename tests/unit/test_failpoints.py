"""The failpoint language: what a text means, in which order terms act, and where a text that means nothing is wrong."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmvisor_runtimes import limits
from llmvisor_runtimes.failpoints import (
    OPERATIONS,
    Cursor,
    FailpointError,
    Failpoints,
    Operation,
    Passage,
    Term,
    in_prompt,
    parse,
)
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt, TextPrompt, TokenPrompt


def verbs(passage: Passage, steps: int) -> list[str | None]:
    """What happens before each of so many steps."""
    return [None if (term := passage.fault()) is None else term.verb for _ in range(steps)]


def passage_of(text: str, operation: Operation = "generate") -> Passage:
    return Failpoints(parse(text)).begin(operation)


def test_parse_reads_every_part() -> None:
    """Rules, terms, counts and arguments come out typed, with white space where one likes."""
    assert parse(" load = 1*delay(2000) -> ok ; generate=3*token->kill(9);") == {
        "load": (Term("delay", 2000, 1), Term("ok", None, None)),
        "generate": (Term("token", 1, 3), Term("kill", 9, None)),
    }


def test_parse_of_nothing_gives_no_rules() -> None:
    """An empty text, as the option's default is, sets nothing."""
    assert parse("") == parse("  \n") == {}


def test_parse_gives_terms_before_the_last_a_count_of_one() -> None:
    """Without a count a term acts once, and the last one for ever."""
    assert [term.count for term in parse("generate=token(2)->hang->stop")["generate"]] == [1, 1, None]


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("kill(SIGTERM)", int(signal.SIGTERM)),
        ("kill(11)", 11),
        ("garbage(deadBEEF 00)", b"\xde\xad\xbe\xef\x00"),
        ("garbage()", b""),
        ("exit(3)", 3),
        ("token", 1),
        ("token(7)", 7),
        ("spin(gil)", "gil"),
        ("spin", None),
        ("malformed(unknown_tag)", "unknown_tag"),
        ("error(out of luck)", "out of luck"),
        ("alloc(512)", 512),
    ],
)
def test_parse_checks_and_types_arguments(verb: str, argument: object) -> None:
    """Each verb's argument is a value of its own kind."""
    assert parse(f"generate={verb}")["generate"][0].argument == argument


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("generate", 0, "expected OPERATION="),
        ("fly=ok", 0, "no operation 'fly'"),
        ("load=ok;fly=ok", 8, "no operation 'fly'"),
        ("load=", 5, "expected"),
        ("load=explode", 5, "no verb 'explode'"),
        ("load=ok->", 9, "expected"),
        ("load=ok->2*soar", 11, "no verb 'soar'"),
        ("load=ok ok", 8, "expected '->'"),
        ("load=delay", 5, "whole number"),
        ("load=delay(soon)", 5, "whole number"),
        ("load=delay(-1)", 5, "whole number"),
        ("load=delay(99999999)", 5, "whole number"),
        ("load=exit(256)", 5, "0 to 255"),
        ("load=kill(SIGNOT)", 5, "signal"),
        ("load=garbage(xyz)", 5, "hexadecimal"),
        ("load=malformed(nicely)", 5, "one of"),
        ("load=spin(cpu)", 5, "one of"),
        ("load=ok(1)", 5, "no argument"),
        ("load=afterend", 5, "cannot happen in load"),
        ("tokenize=ignoreterm", 9, "cannot happen in tokenize"),
        ("load=delay(1", 10, "no '\\)'"),
        ("load=ok;load=ok", 8, "given twice"),
    ],
)
def test_parse_says_what_is_wrong_and_where(text: str, position: int, message: str) -> None:
    """A mistake is named with its position."""
    with pytest.raises(FailpointError, match=message) as caught:
        parse(text)
    assert caught.value.position == position
    assert str(caught.value).endswith(f"at position {position}")


def test_parse_bounds_the_text() -> None:
    """The longest text is read; one character more is refused."""
    text = "load=ok".ljust(limits.failpoints_characters_max)
    assert "load" in parse(text)
    with pytest.raises(FailpointError, match="over"):
        parse(text + " ")


@given(st.text(alphabet="loadgenertk=->;*()0123456789 \n", max_size=60) | st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_parse_of_any_text_gives_rules_or_a_failpoint_error(text: str) -> None:
    """No text makes the parser raise anything else, or give an operation that does not exist."""
    assert _outcome(text)


def _outcome(text: str) -> bool:
    """Whether the rules, or the position of the mistake, can be right."""
    try:
        return set(parse(text)) <= set(OPERATIONS)
    except FailpointError as error:
        return 0 <= error.position <= len(text)


def test_tokens_pass_before_the_next_term_acts() -> None:
    """`3*token->kill(9)` lets three steps pass, and then kills at each."""
    assert verbs(passage_of("generate=3*token->kill(9)"), 5) == [None, None, None, "kill", "kill"]
    assert verbs(passage_of("generate=token(3)->kill(9)"), 4) == [None, None, None, "kill"]


def test_ok_frees_the_rest_of_its_operation() -> None:
    """`2*ok->hang` lets two operations through whole, and hangs in the third."""
    points = Failpoints(parse("generate=2*ok->hang"))
    assert verbs(points.begin("generate"), 3) == [None] * 3
    assert verbs(points.begin("generate"), 3) == [None] * 3
    assert verbs(points.begin("generate"), 1) == ["hang"]


def test_term_with_a_count_acts_so_often_and_then_no_more() -> None:
    """After the last term's count nothing more happens."""
    assert verbs(passage_of("generate=2*delay(5)"), 4) == ["delay", "delay", None, None]


def test_last_term_without_a_count_acts_for_ever() -> None:
    """Each step meets it."""
    assert verbs(passage_of("generate=delay(5)"), 20) == ["delay"] * 20


def test_what_is_used_up_stays_used_up_for_the_next_operation() -> None:
    """Counts are over all operations of a name, and operations do not share them."""
    points = Failpoints(parse("generate=1*delay(1)->ok;tokenize=1*stop"))
    assert verbs(points.begin("generate"), 1) == ["delay"]
    assert verbs(points.begin("generate"), 1) == [None]
    assert verbs(points.begin("tokenize"), 1) == ["stop"]


def test_operation_without_a_rule_meets_nothing() -> None:
    """Only operations that are named fail."""
    points = Failpoints(parse("load=hang"))
    assert "load" in points
    assert "generate" not in points
    assert verbs(points.begin("generate"), 3) == [None] * 3
    assert Cursor().take() is None


def test_prompt_brings_its_own_failpoint() -> None:
    """In a text prompt anywhere, in a conversation in its last user message."""
    expected = parse("generate=2*token->kill(9)")
    text = "Say hello. [[failpoint: generate=2*token->kill(9)]] Thanks."
    chat = [ChatMessage("user", text), ChatMessage("assistant", "hm"), ChatMessage("tool", "t")]
    assert in_prompt(TextPrompt(text)) == expected
    assert in_prompt(ChatPrompt(chat)) == expected
    assert in_prompt(ChatPrompt([*chat, ChatMessage("user", "and now?")])) == {}


def test_token_prompt_brings_no_failpoint() -> None:
    """A request that is taken up again by its tokens does not fail again."""
    assert in_prompt(TokenPrompt(list(b"[[failpoint: generate=hang]]"))) == {}


def test_prompt_may_not_name_what_is_not_its_own() -> None:
    """A request cannot set how the model loads or closes."""
    with pytest.raises(FailpointError, match="only generate, embed, tokenize, apply_template"):
        in_prompt(TextPrompt("[[failpoint: load=hang]]"))


def test_prompt_positions_count_from_the_prompts_beginning() -> None:
    """The position of a mistake is that in the user's own text."""
    text = "Hello [[failpoint: generate=fly]]"
    with pytest.raises(FailpointError) as caught:
        in_prompt(TextPrompt(text))
    assert text[caught.value.position :].startswith("fly")
