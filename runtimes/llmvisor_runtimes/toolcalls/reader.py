"""Text that comes in pieces, read as if all of it were there: what needs more of it yields."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from llmvisor_runtimes import limits

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A part of a parser: yields until more text has come, and returns a T."""

_SPACE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_WORD = re.compile(r"[-+.\w]*")


class Malformed(Exception):
    """What has been read is no tool call."""


class Reader:
    """The text of one choice from the last `commit` on.

    What lies before `at` has been read, but can still turn out to be something else.
    """

    __slots__ = ("at", "commits", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.commits = 0
        """How often something turned out to be certain."""

    def push(self, text: str) -> None:
        """More text has come."""
        self.text += text

    def commit(self) -> None:
        """What has been read is what it was read as."""
        self.text = self.text[self.at :]
        self.at = 0
        self.commits += 1

    def has(self, count: int) -> Steps[bool]:
        """Whether so many characters follow. Raises `Malformed` where that would be too much to hold back."""
        needed = self.at + count
        if needed > limits.tool_call_held_chars_max:
            raise Malformed
        while len(self.text) < needed:
            if self.ended:
                return False
            yield
        return True

    def longer(self) -> Steps[bool]:
        """Wait for more text, for what has come does not tell; False at the end."""
        return (yield from self.has(len(self.text) - self.at + 1))

    def peek(self) -> Steps[str]:
        """The next character, empty at the end."""
        return self.text[self.at] if (yield from self.has(1)) else ""

    def skip_space(self) -> Steps[None]:
        """Go on to what is no white space."""
        while (yield from self.has(1)):
            match = _SPACE.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text):
                return

    def accept(self, *literals: str) -> Steps[str]:
        """Take whichever of these follows, the first that fits; empty where none does."""
        for literal in literals:
            for count in range(1, len(literal) + 1):
                if not (yield from self.has(count)) or self.text[self.at + count - 1] != literal[count - 1]:
                    break
            else:
                self.at += len(literal)
                return literal
        return ""

    def expect(self, *literals: str) -> Steps[str]:
        """Take whichever of these follows. Raises `Malformed` where none does."""
        found = yield from self.accept(*literals)
        if not found:
            raise Malformed
        return found

    def close(self, *literals: str) -> Steps[bool]:
        """Take what ends a call, white space before it, or what has come of it where the text was cut there."""
        start = self.at
        yield from self.skip_space()
        if (yield from self.accept(*literals)):
            return True
        rest = self.text[self.at :]
        if self.ended and any(literal.startswith(rest) for literal in literals):
            self.at = len(self.text)
            return True
        self.at = start
        return False

    def until(self, stops: Sequence[str], chars_max: int) -> Steps[str]:
        """The text up to whichever of these comes first, which is left there. Raises `Malformed` where none comes."""
        start = self.at
        longest = max(len(stop) for stop in stops)
        while True:
            places = [place for stop in stops if (place := self.text.find(stop, start)) >= 0]
            if places and min(places) - start <= chars_max:
                self.at = min(places)
                return self.text[start : self.at]
            if places or len(self.text) - start > chars_max + longest or not (yield from self.longer()):
                raise Malformed

    def string(self) -> Steps[str]:
        """A JSON string, as it is written, quotes included. Raises `Malformed`."""
        if (yield from self.peek()) != '"':
            raise Malformed
        start = self.at
        self.at += 1
        while True:
            match = _IN_STRING.match(self.text, self.at)
            assert match
            self.at = match.end()
            if (yield from self.peek()) == '"':
                self.at += 1
                return self.text[start : self.at]
            # What stops the pattern otherwise is a backslash or the end of what has come.
            if not (yield from self.has(2)):
                raise Malformed

    def word(self) -> Steps[str]:
        """A JSON number or name."""
        start = self.at
        while True:
            match = _WORD.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text) or not (yield from self.has(1)):
                return self.text[start : self.at]

    def give_until(self, marks: Sequence[str], add: Callable[[str], None]) -> Steps[str]:
        """Give the text out, as it comes, up to whichever mark comes first; the mark is left there, empty for none."""
        while True:
            text = self.text
            places = [(place, mark) for mark in marks if (place := text.find(mark)) >= 0]
            if places:
                self.at, mark = min(places)
                add(text[: self.at])
                self.commit()
                return mark
            self.at = len(text) if self.ended else len(text) - held(text, marks)
            add(text[: self.at])
            self.commit()
            if not (yield from self.longer()) and not self.text:
                return ""


def held(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    longest = 0
    for mark in marks:
        place = text.find(mark[0], max(0, len(text) - len(mark) + 1))
        while place >= 0:
            if mark.startswith(text[place:]):
                longest = max(longest, len(text) - place)
                break
            place = text.find(mark[0], place + 1)
    return longest
