"""What llmctl writes on: a terminal with its width and colours, or a pipe with neither."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Literal, TextIO

Style = Literal["", "bold", "dim", "red", "green", "yellow", "cyan"]
_SGR: dict[Style, str] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_UNPRINTABLE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text without control characters: what a model or a worker says must not steer the terminal."""
    return text.translate(_UNPRINTABLE)


class Terminal:
    """Standard output and error. Colours need a terminal, no `NO_COLOR` (no-color.org) and a TERM that is not dumb."""

    def __init__(self, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str]) -> None:
        self.stdout = stdout
        self.stderr = stderr
        dumb = environ.get("TERM") == "dumb"
        self.interactive = stdout.isatty() and not dumb
        self.colour = self.interactive and not environ.get("NO_COLOR")
        self.stderr_interactive = stderr.isatty() and not dumb
        self.stderr_colour = self.stderr_interactive and not environ.get("NO_COLOR")
        self._columns = environ.get("COLUMNS", "")

    @property
    def width(self) -> int | None:
        """Columns; None where lines may have any length."""
        if not self.interactive:
            return None
        if self._columns.isdigit() and int(self._columns) > 0:
            return int(self._columns)
        try:
            return os.get_terminal_size(self.stdout.fileno()).columns or 80
        except OSError:
            return 80

    def paint(self, text: str, style: Style) -> str:
        """Text in a style, or as it is where there are no colours."""
        return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if self.colour and style and text else text

    def line(self, text: str = "") -> None:
        self.stdout.write(text + "\n")

    def lines(self, texts: list[str]) -> None:
        self.stdout.write("".join(text + "\n" for text in texts))

    def write(self, text: str) -> None:
        """A piece of a stream: out at once, and without control characters on a terminal."""
        self.stdout.write(printable(text) if self.interactive else text)
        self.stdout.flush()

    def json(self, body: bytes) -> None:
        """The API's own object, indented."""
        import msgspec  # noqa: PLC0415 - llmctl --help has no need of it

        self.line(msgspec.json.format(body, indent=2).decode())

    def json_line(self, body: bytes) -> None:
        """The API's own object on one line, for streams of them."""
        import msgspec  # noqa: PLC0415 - as above

        self.line(msgspec.json.format(body, indent=-1).decode())
        self.stdout.flush()

    def note(self, text: str, style: Style = "") -> None:
        """To stderr: what is no part of the result."""
        painted = f"\x1b[{_SGR[style]}m{text}\x1b[0m" if style and self.stderr_colour else text
        self.stderr.write(painted + "\n")
        self.stderr.flush()


def standard_terminal() -> Terminal:
    return Terminal(sys.stdout, sys.stderr, os.environ)
