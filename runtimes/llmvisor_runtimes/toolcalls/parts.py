"""What a parser has found so far, until it is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from llmvisor_runtimes import limits
from llmvisor_runtimes.output import Parts
from llmvisor_runtimes.protocol import Tool, ToolCallDelta

_SPACE = " \t\r\n"


class _Property(msgspec.Struct):
    type: object = None


class _Schema(msgspec.Struct):
    properties: dict[str, _Property] = {}


class Found:
    """Parts under way, white space around them left out: between thoughts, text and calls it has no meaning."""

    __slots__ = (
        "_calls", "_fresh", "_index", "_new_id", "_one", "_pending", "_reasoning", "_separator", "_text", "_tools",
        "_written", "names", "trims",
    )  # fmt: skip

    def __init__(self, new_id: Callable[[], str], *, tools: Sequence[Tool], one: bool, trims: bool) -> None:
        """`tools` are those that there are; with `one` only the first call counts; `trims`: white space is left out."""
        self.names = frozenset(tool.name for tool in tools)
        self._tools = tools
        self.trims = trims
        self._new_id = new_id
        self._one = one
        self._index = -1
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._pending: str = ""
        self._separator = ""
        self._fresh = False
        self._written = False

    @property
    def called(self) -> bool:
        """Whether a call has come."""
        return self._index >= 0

    def takes_text(self, name: str, parameter: str) -> bool:
        """Whether a tool's schema says that a parameter is a text."""
        try:
            schemas = [msgspec.json.decode(tool.parameters, type=_Schema) for tool in self._tools if tool.name == name]
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return False
        return any(
            parameter in schema.properties and schema.properties[parameter].type == "string" for schema in schemas
        )

    def add_text(self, text: str) -> None:
        """More text for the reader."""
        if self.trims:
            text = self._trimmed(text)
        elif self._fresh:
            text = text.lstrip(_SPACE)
            self._fresh = not text
        if text:
            self._text.append(self._separator + text)
            self._separator = ""
            self._written = True

    def begin_paragraph(self) -> None:
        """Text that follows stands apart from what came before."""
        self.begin_part()
        self._separator = "\n\n" if self._written else ""

    def add_reasoning(self, text: str) -> None:
        """More of the thoughts."""
        if text := self._trimmed(text):
            self._reasoning.append(text)

    def begin_part(self) -> None:
        """Something else begins: white space before and after this place belongs to nothing."""
        self._pending = ""
        self._fresh = True

    def begin_call(self, name: str) -> None:
        """A call, whose arguments follow."""
        self.begin_part()
        self._index += 1
        if not self._dropped:
            self._calls.append(ToolCallDelta(self._index, self._new_id(), _encodable(name), ""))

    def add_arguments(self, text: str) -> None:
        """More of the call's arguments, JSON as the model writes it."""
        if text and not self._dropped:
            self._calls.append(ToolCallDelta(self._index, None, None, _encodable(text)))

    def end(self) -> None:
        """The text has ended: white space that was held back comes out."""
        if self._pending and not self.called and self.trims:
            self._text.append(self._pending)
        self._pending = ""

    def take(self) -> Parts:
        """What has come since the last time."""
        parts = Parts("".join(self._text), "".join(self._reasoning), _joined(self._calls))
        self._text.clear()
        self._reasoning.clear()
        self._calls.clear()
        return parts

    @property
    def _dropped(self) -> bool:
        return self._one and self._index > 0

    def _trimmed(self, text: str) -> str:
        """The text without white space at the beginning of a part; that at its end waits for what follows."""
        text = self._pending + text
        if self._fresh:
            text = text.lstrip(_SPACE)
            self._fresh = not text
        end = max(len(text.rstrip(_SPACE)), len(text) - limits.white_space_held_chars_max)
        self._pending = text[end:]
        return text[:end]


def _encodable(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which JSON's escapes can stand for and UTF-8 cannot."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _joined(deltas: list[ToolCallDelta]) -> list[ToolCallDelta]:
    """One delta for each call."""
    joined: dict[int, ToolCallDelta] = {}
    for delta in deltas:
        first = joined.get(delta.index)
        joined[delta.index] = (
            delta
            if first is None
            else ToolCallDelta(delta.index, first.id, first.name, first.arguments + delta.arguments)
        )
    return list(joined.values())
