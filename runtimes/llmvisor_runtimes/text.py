"""Token bytes to text that may be sent: whole characters only, and nothing of a stop string.

Tokens cut characters and stop strings anywhere. However the bytes are cut, `TextAssembler` gives the text that decoding
them all at once and searching the result for the stop strings would give.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from functools import lru_cache


class TextAssembler:
    """The text of one choice, piece by piece.

    The stop string that begins earliest in the text wins, and of those that begin at one place the shortest. Bytes that
    are no UTF-8 become U+FFFD exactly as `bytes.decode("utf-8", "replace")` makes them. Empty stop strings are ignored.
    """

    __slots__ = ("_held", "_length", "_partial", "_searches", "matched", "stopped")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """A stop string has occurred: the text before it has been given, and nothing more comes."""
        self.matched: str | None = None
        """The stop string that occurred."""
        self._partial = b""
        self._held = ""
        self._length = 0
        self._searches = [_Search(text) for text in dict.fromkeys(stop) if text]

    def push(self, piece: bytes) -> str:
        """The text that may be sent now that these bytes have come."""
        if self._partial:
            piece = self._partial + piece
            self._partial = b""
        text, used = utf_8_decode(piece, "replace", False)
        if used != len(piece):
            self._partial = piece[used:]
        return self._release(text) if self._searches else text

    def flush(self) -> str:
        """What was held back, at the end of a generation; a character that was cut becomes U+FFFD."""
        text, _ = utf_8_decode(self._partial, "replace", True)
        self._partial = b""
        if not self._searches:
            return text
        released = self._release(text)
        if self.stopped:
            return released
        if first := self._first_found():
            return released + self._stop_at(first)
        released += self._held
        self._held = ""
        return released

    def _release(self, text: str) -> str:
        """Take text in and give what can no longer be part of a stop string."""
        if self.stopped:
            return ""
        offset = self._length
        self._length = end = offset + len(text)
        undecided = end
        found = False
        for search in self._searches:
            search.advance(text, offset)
            if search.start >= 0:
                found = True
            elif end - search.matched < undecided:
                undecided = end - search.matched
        self._held = held = self._held + text if self._held else text
        if found and (first := self._first_found()) and first.start <= undecided:
            return self._stop_at(first)
        # A stop string that is whole but begins after `undecided` waits: an earlier one may still be completed.
        cut = len(held) - (end - undecided)
        self._held = held[cut:]
        return held[:cut]

    def _first_found(self) -> _Search | None:
        found = [search for search in self._searches if search.start >= 0]
        return min(found, key=lambda search: (search.start, len(search.stop)), default=None)

    def _stop_at(self, search: _Search) -> str:
        before = self._held[: len(self._held) - (self._length - search.start)]
        self.stopped = True
        self.matched = search.stop
        self._held = ""
        return before


class _Search:
    """Knuth, Morris and Pratt's search for one stop string in text that comes in pieces.

    Linear in the text whatever the stop string is: a client must not slow the engine's loop with `aaaa…b`.
    """

    __slots__ = ("_failure", "matched", "start", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.start = -1
        """Where the stop string begins in the whole text; -1 until it has occurred."""
        self.matched = 0
        """Characters at the end of the text that are the beginning of the stop string."""
        self._failure = _failure_table(stop)

    def advance(self, text: str, offset: int) -> None:
        """Read `text`, which begins at `offset` of the whole text."""
        stop, matched, at, end = self.stop, self.matched, 0, len(text)
        if self.start >= 0:
            return
        while at < end:
            if matched == 0 and (at := text.find(stop[0], at)) < 0:
                break
            character = text[at]
            while matched and stop[matched] != character:
                matched = self._failure[matched - 1]
            if stop[matched] == character:
                matched += 1
            at += 1
            if matched == len(stop):
                self.start = offset + at - matched
                break
        self.matched = matched


@lru_cache(maxsize=64)
def _failure_table(stop: str) -> tuple[int, ...]:
    """For each prefix of the stop string, the length of its longest proper prefix that is also its suffix."""
    table = [0]
    matched = 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = table[matched - 1]
        if stop[matched] == character:
            matched += 1
        table.append(matched)
    return tuple(table)
