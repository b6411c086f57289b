"""A step too long for a frame goes out in several, and says the same."""

from __future__ import annotations

import os

import pytest

from llmvisor_runtimes import limits
from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import Delta, Done, Report, Step, Text, TokenLogprob
from llmvisor_runtimes.split import split_step

DONE = Done(1, 10, 0, 0, 1.0, 1.0)


def delta_of(tokens: int, *, index: int = 0) -> Delta:
    """An echo of so many tokens with their log-probabilities."""
    ids = list(range(tokens))
    return Delta(1, index, "echo", ids, "length", [TokenLogprob(token, b"x", -1.0, []) for token in ids])


@pytest.mark.parametrize("tokens", [0, 1, limits.delta_tokens_split, limits.delta_tokens_split + 1, 10_000])
def test_split_step_says_what_the_whole_said(tokens: int) -> None:
    """Tokens and log-probabilities in order, text and finish once and last, `Done` after all deltas."""
    whole = Step([delta_of(tokens), delta_of(2, index=1)], [DONE])
    steps = list(split_step(whole))
    for delta in whole.deltas:
        pieces = [piece for step in steps for piece in step.deltas if piece.index == delta.index]
        assert max(len(piece.tokens) for piece in pieces) <= limits.delta_tokens_split
        assert [token for piece in pieces for token in piece.tokens] == delta.tokens
        assert [entry for piece in pieces for entry in piece.logprobs] == delta.logprobs
        assert [piece.text for piece in pieces] == [""] * (len(pieces) - 1) + ["echo"]
        assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert steps[-1].done == [DONE]
    assert not any(step.done for step in steps[:-1])


def test_pipes_split_a_step_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one frame would be over the bound several come; no other report can be split, and raises."""
    monkeypatch.setattr(limits, "frame_bytes_max", 2000)
    monkeypatch.setattr(limits, "delta_tokens_split", 50)
    read_fd, write_fd = os.pipe()
    try:
        pipes = Pipes(read_fd=read_fd, write_fd=write_fd)
        pipes.send([Step([delta_of(500)], [DONE]), Text(2, "after")])
        found: list[Report] = list(FrameReader(REPORT_DECODER).feed(os.read(read_fd, 65_536)))
        with pytest.raises(ValueError, match="over the bound"):
            pipes.send([Text(3, "x" * 2000)])
    finally:
        os.close(read_fd)
        os.close(write_fd)
    steps = [report for report in found if isinstance(report, Step)]
    assert len(steps) > 5
    assert [token for step in steps for delta in step.deltas for token in delta.tokens] == list(range(500))
    assert found[-1] == Text(2, "after")
