"""Grammars: what a text has to be, as masks over the next token."""

from __future__ import annotations

from typing import Protocol


class Matcher(Protocol):
    """The state of one text that is being written."""

    def mask(self) -> bytearray:
        """Which tokens may come next: a bit for each in little-endian 32-bit words; valid until the next call."""
        ...

    def consume(self, token: int) -> bool:
        """A token has been written; False where it was not allowed, which leaves the state as it was."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing may follow but the end."""
        ...


class Constraint(Protocol):
    """A compiled grammar."""

    def matcher(self) -> Matcher:
        """A matcher for a text from its beginning."""
        ...
