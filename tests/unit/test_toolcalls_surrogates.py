"""Halves of surrogate pairs that a model escapes: whatever comes out of its calls can be sent as UTF-8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.toolcall_parsing import FAMILIES, FRAGMENTS, cut, joined, parser_of

HALVES = ["\\ud800", "\\udc00", "\\uD83D", "\\uDE42", "\\u0041", "\\\\ud800", '\\\\\\"']
CALLS_WITH_HALVES = [
    '<tool_call>{"name": "nowHALF", "arguments": {"a": "HALF"}}</tool_call>',
    '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"HALF\\"}"}</tool_call>',
    '<function=now><parameter=a>"HALF"</parameter><parameter=HALF>HALF</parameter></function>',
    '```tool_code\nnow(a="HALF")\n```',
    '[TOOL_CALLS]now[ARGS]{"a": "HALF"}',
    "<think>HALF</think>HALF",
    '<|channel|>commentary to=functions.now<|message|>{"a": "HALF"}<|call|>',
]


@given(
    st.sampled_from(FAMILIES),
    st.lists(
        st.one_of(
            st.sampled_from([*FRAGMENTS, *HALVES]),
            st.tuples(st.sampled_from(CALLS_WITH_HALVES), st.sampled_from(HALVES)).map(
                lambda pair: pair[0].replace("HALF", pair[1])
            ),
        ),
        max_size=6,
    ).map("".join),
    st.lists(st.integers(min_value=0), max_size=6),
)
def test_toolcalls_parts_of_any_text_are_utf8(family: str, text: str, places: list[int]) -> None:
    """Whatever halves of surrogate pairs a model escapes: names, arguments, text and thoughts can be sent."""
    parser = parser_of(family)
    for parts in [*map(parser.feed, cut(text, places)), parser.finish()]:
        names = [call.name or "" for call in parts.tool_calls]
        arguments = [call.arguments for call in parts.tool_calls]
        said = "".join([parts.text, parts.reasoning, *names, *arguments])
        assert said.encode("utf-8", "replace").decode() == said


@pytest.mark.parametrize(
    ("family", "written", "call"),
    [
        ("hermes", '<tool_call>{"name": "\\ud800x", "arguments": {}}</tool_call>', ("\ufffdx", "{}")),
        (
            "hermes",
            '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
            ("now", '{"a": "\ufffd"}'),
        ),
        ("hermes", '<function=now><parameter=a>"\\ud800"</parameter></function>', ("now", '{"a": "\ufffd"}')),
        ("gemma", '```tool_code\nnow(a="\\ud800")\n```', ("now", '{"a": "\ufffd"}')),
        ("gemma", '```tool_code\nnow(a="\\ud83d\\ude42")\n```', ("now", '{"a": "\U0001f642"}')),
    ],
)
def test_toolcalls_half_a_surrogate_pair_is_replaced(family: str, written: str, call: tuple[str, str]) -> None:
    """What UTF-8 has no form for becomes U+FFFD; two halves become the character they stand for."""
    assert joined(parser_of(family), [written]).calls == [call]
