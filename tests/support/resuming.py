"""Replies that are cut somewhere and gone on with by another worker."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmvisor_runtimes.protocol import Delta, Resumed, TokenLogprob


class Got(msgspec.Struct):
    """Everything that a client got of one choice, however it was cut. Ids of tool calls are left out."""

    text: str
    reasoning: str
    calls: dict[int, str]
    """Name and arguments by the call's index."""
    tokens: list[int]
    logprobs: list[TokenLogprob]
    ends: list[str]


def got(deltas: Sequence[Delta], index: int = 0) -> Got:
    """What a client has of these deltas."""
    own = [delta for delta in deltas if delta.index == index]
    calls: dict[int, str] = {}
    for call in (call for delta in own for call in delta.tool_calls):
        calls[call.index] = calls.get(call.index, "") + (call.name or "") + call.arguments
    return Got(
        text="".join(delta.text for delta in own),
        reasoning="".join(delta.reasoning for delta in own),
        calls=calls,
        tokens=[token for delta in own for token in delta.tokens],
        logprobs=[entry for delta in own for entry in delta.logprobs],
        ends=[delta.finish for delta in own if delta.finish],
    )


def sent_of(deltas: Sequence[Delta], choices: int = 1) -> list[Resumed]:
    """What the next worker is told of these deltas."""
    sent: list[Resumed] = []
    for index in range(choices):
        own = [delta for delta in deltas if delta.index == index]
        sent.append(
            Resumed(
                tokens=[token for delta in own for token in delta.tokens],
                finish=next((delta.finish for delta in own if delta.finish), None),
                tool_call_ids=call_ids(own),
            )
        )
    return sent


def call_ids(deltas: Sequence[Delta]) -> list[str]:
    """The ids of the tool calls that have begun, in order."""
    return [call.id for delta in deltas for call in delta.tool_calls if call.id is not None]


def assert_same(first: Got, second: Got, noise: float) -> None:
    """The same, log-probabilities within float noise: they are computed in other batches."""
    close = zip(first.logprobs, second.logprobs, strict=True)
    assert all(abs((a.logprob or 0) - (b.logprob or 0)) < noise for a, b in close)
    for each in (first, second):
        each.logprobs = []
    assert first == second
