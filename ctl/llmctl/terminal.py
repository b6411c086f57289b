"""What llmctl writes on: a terminal with its width and colours, or a pipe with neither."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Literal, TextIO

Style = Literal["", "bold", "dim", "red", "green", "yellow", "cyan"]
_SGR: dict[Style, str] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STEERING = "\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
"""Control characters but for line ends, tabs and escapes; and those that show text in another order than it has."""
_UNPRINTABLE = re.compile(f"[\x1b{_STEERING}]")
_UNPAINTED = re.compile(f"\x1b(?!\\[(?:0|{'|'.join(_SGR.values())})m)|[{_STEERING}]")


def printable(text: str) -> str:
    """Text without control characters: what a model or a worker says must not steer the terminal."""
    return text if text.isprintable() else _UNPRINTABLE.sub("", text)


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
        """Control characters are left out, but for what `paint` has made of it."""
        self.lines([text])

    def lines(self, texts: list[str]) -> None:
        whole = "".join(text + "\n" for text in texts)
        self.stdout.write((_UNPAINTED if self.colour else _UNPRINTABLE).sub("", whole))

    def write(self, text: str) -> None:
        """A piece of a stream: out at once, and without control characters on a terminal."""
        self.stdout.write(printable(text) if self.interactive else text)
        self.stdout.flush()

    def json(self, body: bytes) -> None:
        """The API's own object, indented."""
        import msgspec  # noqa: PLC0415 - llmctl --help has no need of it

        self.line(_escaped(msgspec.json.format(body, indent=2)))

    def json_line(self, body: bytes) -> None:
        """The API's own object on one line, for streams of them."""
        import msgspec  # noqa: PLC0415 - as above

        self.line(_escaped(msgspec.json.format(body, indent=-1)))
        self.stdout.flush()

    def note(self, text: str, style: Style = "") -> None:
        """To stderr: what is no part of the result."""
        text = printable(text)
        painted = f"\x1b[{_SGR[style]}m{text}\x1b[0m" if style and self.stderr_colour else text
        try:
            self.stderr.write(painted + "\n")
            self.stderr.flush()
        except BrokenPipeError:
            raise
        except OSError:
            # A full disk: there is nowhere left to tell of it, and the exit code is what counts.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stderr.fileno())


def _escaped(body: bytes) -> str:
    """JSON lets stand in its texts what some terminals take for the beginning of a command."""
    text = body.decode()
    return text if text.isascii() and "\x7f" not in text else _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def standard_terminal() -> Terminal:
    return Terminal(sys.stdout, sys.stderr, os.environ)
