"""What a report holds goes out whole, or costs its own request alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llmvisor_runtimes.framing import REPORT_DECODER, FrameReader
from llmvisor_runtimes.pipes import Pipes
from llmvisor_runtimes.protocol import Delta, Embedding, Embeddings, Failed, Report, Step, Text, ToolCallDelta


def through_a_pipe(reports: Sequence[Report]) -> list[Report]:
    read_fd, write_fd = os.pipe()
    try:
        Pipes(read_fd=read_fd, write_fd=write_fd).send(reports)
        return list(FrameReader(REPORT_DECODER).feed(os.read(read_fd, 65_536)))
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_text_that_is_no_unicode_spoils_no_other() -> None:
    """Lone surrogates, as a model may write them in JSON: U+FFFD in their place, and all else is as it was."""
    bad = Delta(1, 0, "a\ud800b", [1], tool_calls=[ToolCallDelta(0, "id", "name", arguments='{"\udc00')])
    good = Delta(2, 0, "ö🙂", [2, 3])
    (step,) = through_a_pipe([Step([bad, good])])
    assert isinstance(step, Step)
    assert step.deltas[1] == good
    assert (step.deltas[0].text, step.deltas[0].tool_calls[0].arguments) == ("a\ufffdb", '{"\ufffd')


def test_every_kind_of_report_may_hold_such_text() -> None:
    """A failure's message and an answer too; bytes are left alone, and halves of one character find each other."""
    vectors = Embeddings(3, 0, [Embedding(1, dense=b"\xff\xfe")], last=True)
    found = through_a_pipe([Failed(1, "invalid_value", "\ud800"), Text(2, "\ud83d\ude42 \udfff"), vectors])
    assert found == [Failed(1, "invalid_value", "\ufffd"), Text(2, "🙂 \ufffd"), vectors]
