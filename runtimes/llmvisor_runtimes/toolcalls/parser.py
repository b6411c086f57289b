"""Takes a choice's text apart: thoughts first, then text with calls in it."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable

from llmvisor_runtimes.output import OutputParser, Parts
from llmvisor_runtimes.protocol import ChatPrompt
from llmvisor_runtimes.toolcalls import harmony
from llmvisor_runtimes.toolcalls.families import FORMATS, Format, format_of, reasoning_of, thoughts_begun
from llmvisor_runtimes.toolcalls.json_call import read_several
from llmvisor_runtimes.toolcalls.parts import Found
from llmvisor_runtimes.toolcalls.reader import Malformed, Reader, Steps

ID_CHARACTERS = 24
_ALPHABET = string.ascii_letters + string.digits


def call_id() -> str:
    """A fresh id of a call."""
    return "call_" + "".join([secrets.choice(_ALPHABET) for _ in range(ID_CHARACTERS)])


def make_parser(
    prompt: ChatPrompt, family: str, opening: str, new_id: Callable[[], str] = call_id
) -> OutputParser | None:
    """A parser for one choice of a conversation, or None where there is nothing to take apart.

    `family` is what `family_of` gives; `opening` is the end of the rendered prompt (a thousand characters are plenty),
    which tells whether the template has begun the thoughts already.
    """
    calls = bool(prompt.tools) and prompt.tool_choice != "none"
    one = not prompt.parallel_tool_calls
    found = Found(new_id, tools=prompt.tools, one=one, trims=calls)
    format = format_of(family)
    if format == "harmony":
        return Parser(found, lambda reader: harmony.read(reader, found, opening, calls=calls))
    begun = thoughts_begun(opening)
    reasoning = begun or reasoning_of(family)
    if not calls and reasoning is None:
        return None
    entry = FORMATS[format] if calls else None
    return Parser(found, lambda reader: _read(reader, found, reasoning, entry, begun=begun is not None))


class Parser:
    """Drives a reading of the text; `output.OutputParser` says what each method does."""

    def __init__(self, found: Found, read: Callable[[Reader], Steps[None]]) -> None:
        self._found = found
        self._reader = Reader()
        self._steps = read(self._reader)

    @property
    def called(self) -> bool:
        """Whether a call has come."""
        return self._found.called

    def feed(self, text: str) -> Parts:
        """The parts that are certain now."""
        self._reader.push(text)
        next(self._steps)
        return self._found.take()

    def finish(self) -> Parts:
        """The text has ended."""
        self._reader.ended = True
        next(self._steps, None)
        self._found.end()
        return self._found.take()


def _read(
    reader: Reader, found: Found, reasoning: tuple[str, str] | None, format: Format | None, *, begun: bool
) -> Steps[None]:
    """A whole text: thoughts, then text and calls."""
    if reasoning is not None:
        yield from _read_thoughts(reader, found, reasoning, begun=begun)
    if format is not None:
        yield from _read_unmarked(reader, found)
    marks = tuple(format.marks) if format else ()
    while mark := (yield from reader.give_until(marks, found.add_text)):
        assert format is not None, "no mark is looked for without a format"
        yield from _read_marked(reader, found, mark, format)


def _read_thoughts(reader: Reader, found: Found, marks: tuple[str, str], *, begun: bool) -> Steps[None]:
    begin, end = marks
    if not (yield from _begins(reader, begin)) and not begun:
        return
    reader.commit()
    found.begin_part()
    if (yield from reader.give_until((end,), found.add_reasoning)):
        reader.at = len(end)
        reader.commit()
    found.begin_part()


def _begins(reader: Reader, mark: str) -> Steps[bool]:
    """Take white space and a mark, or nothing."""
    try:
        yield from reader.skip_space()
        if (yield from reader.accept(mark)):
            return True
    except Malformed:
        pass
    reader.at = 0
    return False


def _read_unmarked(reader: Reader, found: Found) -> Steps[None]:
    """Calls at the very beginning that no mark announces."""
    try:
        yield from reader.skip_space()
        if (yield from reader.peek()) in ("{", "["):
            yield from read_several(reader, found, known=True)
    except Malformed:
        pass
    reader.at = 0


def _read_marked(reader: Reader, found: Found, mark: str, format: Format) -> Steps[None]:
    """What follows a mark; where that is no call, the mark is text."""
    commits = reader.commits
    reader.at = len(mark)
    try:
        yield from format.marks[mark](reader, found)
    except Malformed:
        reader.at = 0
        if commits == reader.commits:
            reader.at = len(mark)
            found.add_text(mark)
            reader.commit()
