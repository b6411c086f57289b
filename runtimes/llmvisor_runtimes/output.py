"""What a model writes, taken apart: text for the reader, reasoning, tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llmvisor_runtimes.protocol import ToolCallDelta


class Parts(NamedTuple):
    """What a piece of text turned out to be."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


class OutputParser(Protocol):
    """Takes one choice's text apart while it comes. However it is cut, the parts join to the same."""

    def feed(self, text: str) -> Parts:
        """The parts that are certain now; what may still become a marker waits."""
        ...

    def finish(self) -> Parts:
        """The text has ended: what waited comes out."""
        ...

    @property
    def called(self) -> bool:
        """Whether a tool call has come: the choice then ends with `tool_calls` instead of `stop`."""
        ...
